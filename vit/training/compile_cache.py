"""What torch.compile made, kept in the run folder: a run that goes on on another node takes it over.

torch's own cache is on the disk of one node.  https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from vit.distributed.world import World
from vit.run.disk_errors import UNWILLING
from vit.run.folder import RunFolder
from vit.run.fsync import replace_file
from vit.run.progress import show


class Compiled:
    """The graphs of this rank, which name its device; those of the first node are for all others.

    On GPUs that is all that compiling makes.  On CPUs torch leaves the kernels in C++, for each node to build.
    """

    def __init__(self, run: RunFolder, world: World) -> None:
        """Takes over what earlier attempts made.  torch leaves alone what is of another version."""
        self._folder = run.compiled / _kind(world.device) / f"rank-{world.local_rank}"
        self._keeps = world.rank == world.local_rank
        self._known: set[tuple[str, str]] = set()  # the kind and the key of each graph that a file has, or will have
        self._unwritten: list[bytes] = []
        self._told = False
        for file in sorted(self._folder.glob("*.bin")):
            try:
                self._take_over(file)
            except OSError as error:
                show(f"{file} cannot be read ({error.strerror}): what is in it is compiled again", lasting=True)

    def keep(self) -> None:
        """Writes down what was compiled since, if anything was.  A full disk is no reason not to train.

        Each time into a file of its own, named by its digest: torch writes all that this process has compiled so far,
        but of a file it reads only what was compiled since the last time (seen in 2.15).
        """
        made = torch.compiler.save_cache_artifacts() if self._keeps else None
        if made is not None and not (names := _names(made[1])) <= self._known:
            self._known |= names
            self._unwritten.append(made[0])
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            if error.errno not in UNWILLING:
                raise
            if not self._told:
                show(f"{self._folder} cannot be written ({error.strerror}): other nodes compile again", lasting=True)
            self._told = True

    def _take_over(self, file: Path) -> None:
        made = file.read_bytes()
        if hashlib.sha256(made).hexdigest() == file.stem:
            found = torch.compiler.load_cache_artifacts(made)
            self._known |= _names(found)
            return
        show(f"{file} is damaged: what was in it is compiled again", lasting=True)
        if self._keeps:
            file.unlink()

    def _write(self, made: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / f"{hashlib.sha256(made).hexdigest()}.bin", made)


def _kind(device: torch.device) -> str:
    """What a graph may be run on.  torch compares GPUs by itself; a CPU's width it writes into the C++ unasked."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).replace(" ", "-")
    return f"cpu-{torch.backends.cpu.get_cpu_capability()}"


def _names(info: Any) -> set[tuple[str, str]]:
    """The kind and the key of each artifact; of none where torch could not read them."""
    return {(kind, key) for kind, keys in info.artifacts.items() for key in keys} if info is not None else set()
