"""Takes over a run where its newest whole checkpoint left it, on any number of ranks."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vit import checkpoint
from vit.checkpoint import DamagedError
from vit.ledger import RunFolder
from vit.log import show
from vit.state import State
from vit.world import World

Loaded = tuple[Path, dict[str, Tensor], dict[str, Any]]  # a checkpoint, its tensors and its manifest


def resume(run: RunFolder, world: World, state: State, recipe: Mapping[str, Any], accepted: list[str]) -> int | None:
    """Restores the newest whole checkpoint and returns its step; None if there is none.

    Raises ValueError for another recipe, unless all that differs is `accepted`.
    """
    found = newest(run, world)
    if found is None:
        return None
    path, tensors, manifest = found
    changed = checkpoint.differences(manifest["about"]["recipe"], recipe, accepted)
    if changed:
        raise ValueError(
            f"{path} is of another run:\n  " + "\n  ".join(changed) + "\nStart in a new folder, or "
            "accept the change with --override-resume " + " ".join(c.split(":")[0] for c in changed)
        )
    state.restore(manifest["step"], tensors, manifest["about"])
    return state.step


def newest(run: RunFolder, world: World) -> Loaded | None:
    """The newest checkpoint that every rank has read and found whole; damaged ones are set aside and named."""
    found: list[list[Path]] = [[]]
    if world.rank == 0:
        checkpoint.clean(run.checkpoints)
        found = [checkpoint.find(run.checkpoints)]
    dist.broadcast_object_list(found)
    for path in found[0]:
        problems: list[str | None] = [None] * world.size
        problem, loaded = None, None
        try:
            loaded = checkpoint.load(path)
        except DamagedError as error:
            problem = str(error)
        dist.all_gather_object(problems, problem)
        damage = next(filter(None, problems), None)
        if damage is None and loaded is not None:
            return path, *loaded
        if world.rank == 0:
            message = checkpoint.set_aside(path, DamagedError(damage))
            show(message, lasting=True)
            run.record("damaged checkpoint", problem=message)
    return None


def begin(run: RunFolder, world: World, state: State, source: str) -> None:
    """Starts from weights of elsewhere.  Once there is a checkpoint, a resumed run needs them no more."""
    said = state.start_from(Path(source))
    if world.rank == 0:
        run.record("initialised", source=source, weights=said)
        show(f"{source}: {'; '.join(said)}", lasting=True)


def versions() -> dict[str, str]:
    """What this process computes with, which a checkpoint remembers."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
