"""Keeps the artifacts of torch.compile in the run folder, so that a run that resumes on another node can reuse them.

torch's own cache is on the local disk of one node.  https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from vit.distributed.world import World
from vit.run.disk_errors import TOLERATED_WRITE_ERRORS
from vit.run.folder import RunFolder
from vit.run.fsync import replace_file
from vit.run.progress import show


class CompileCache:
    """The compiled graphs of one local rank: they contain its device index.

    Only ranks of the first node write them, unless it is `read_only`; all nodes read them.
    On GPUs these are all artifacts.  On CPUs torch stores the kernels as C++ source, which each node compiles.
    """

    def __init__(self, run: RunFolder, world: World, read_only: bool = False) -> None:
        self._folder = run.compiled / _device_kind(world.device) / f"rank-{world.local_rank}"
        self._is_writer = world.rank == world.local_rank and not read_only
        self._known: set[tuple[str, str]] = set()  # kind and key of each artifact that is in a file or in _unwritten
        self._unwritten: list[bytes] = []
        self._write_error_shown = False
        self.load()

    @property
    def has_graphs(self) -> bool:
        """Whether there are graphs for this kind of device."""
        return bool(self._known)

    def load(self) -> None:
        """Loads what earlier attempts compiled.  torch ignores artifacts of another version."""
        for file in sorted(self._folder.glob("*.bin")):
            try:
                self._load_file(file)
            except OSError as error:
                show(f"{file} cannot be read ({error.strerror}); its graphs are compiled again", lasting=True)

    def save(self) -> None:
        """Writes what was compiled since the last call, if anything.  Continues if the disk is full.

        Each call writes its own file, named by its digest: torch serializes everything that this process has compiled
        so far, but loads from a file only what was compiled since the previous serialization (seen in 2.15).
        """
        artifacts = torch.compiler.save_cache_artifacts() if self._is_writer else None
        if artifacts is not None and not (names := _artifact_names(artifacts[1])) <= self._known:
            self._known |= names
            self._unwritten.append(artifacts[0])
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            if error.errno not in TOLERATED_WRITE_ERRORS:
                raise
            if not self._write_error_shown:
                show(f"{self._folder} cannot be written ({error.strerror}); other nodes compile again", lasting=True)
            self._write_error_shown = True

    def _load_file(self, file: Path) -> None:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() == file.stem:
            info = torch.compiler.load_cache_artifacts(data)
            self._known |= _artifact_names(info)
            return
        show(f"{file} is damaged; its graphs are compiled again", lasting=True)
        if self._is_writer:
            file.unlink()

    def _write(self, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / f"{hashlib.sha256(data).hexdigest()}.bin", data)


def _device_kind(device: torch.device) -> str:
    """The kind of device that a graph may run on.  torch checks GPUs itself, but not the vector width of CPU code."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).replace(" ", "-")
    return f"cpu-{torch.backends.cpu.get_cpu_capability()}"


def _artifact_names(info: Any) -> set[tuple[str, str]]:
    """Kind and key of each artifact; empty if torch could not read them."""
    return {(kind, key) for kind, keys in info.artifacts.items() for key in keys} if info is not None else set()
