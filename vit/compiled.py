"""What torch.compile made, kept in the run folder: a run that goes on on another node need not make it again.

torch's own cache is on the disk of one node.  https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html
"""

import hashlib

import torch

from vit import durable
from vit.ledger import UNWILLING, RunFolder
from vit.log import show
from vit.world import World


class Compiled:
    """The graphs of this rank, which are its own: they name its device."""

    def __init__(self, run: RunFolder, world: World) -> None:
        """Takes over what earlier attempts made.  torch leaves alone what is of another version or kind of device."""
        self._folder = run.path / "compiled" / f"rank-{world.local_rank}"
        self._keeps = world.rank == world.local_rank  # those of the first node, for all nodes
        self._kept: set[str] = set()  # digests of the files that are whole
        self._told = False
        for file in sorted(self._folder.glob("*.bin")):
            if (digest := hashlib.sha256(made := file.read_bytes()).hexdigest()) == file.stem:
                torch.compiler.load_cache_artifacts(made)
                self._kept.add(digest)
            else:
                show(f"{file} is damaged: what was in it is compiled again", lasting=True)

    def keep(self) -> None:
        """Writes down what was compiled since, if anything was.  A full disk is no reason not to train.

        Each time into a file of its own, named by its digest: torch writes all that this process compiled, and reads
        only what came last of it (seen in 2.15).
        """
        made = torch.compiler.save_cache_artifacts() if self._keeps else None
        if made is None or (digest := hashlib.sha256(made[0]).hexdigest()) in self._kept:
            return
        file = self._folder / f"{digest}.bin"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            durable.replace(file, made[0])
            self._kept.add(digest)
        except OSError as error:
            if error.errno not in UNWILLING:
                raise
            if not self._told:
                show(f"{file} cannot be written ({error.strerror}): another node compiles again", lasting=True)
            self._told = True
