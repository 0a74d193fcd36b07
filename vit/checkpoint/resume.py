"""Takes over a run where its newest whole checkpoint left it, on any number of ranks."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vit.checkpoint.format import DamagedCheckpointError, clean, differences, find_checkpoints, quarantine
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.skipped_steps import recipe_digest
from vit.checkpoint.train_state import TrainState
from vit.config import schema
from vit.distributed.world import World
from vit.run.folder import RunFolder
from vit.run.progress import show

Loaded = tuple[Path, dict[str, Tensor], dict[str, Any]]  # a checkpoint, its tensors and its manifest


def resume(
    run: RunFolder, world: World, state: TrainState, recipe: Mapping[str, Any], accepted: list[str]
) -> int | None:
    """Restores the newest whole checkpoint and returns its step; None if there is none.

    The state also knows from here on which steps this recipe is to skip.  Raises ValueError for another recipe, unless
    all that differs is `accepted`.
    """
    written: list[set[int]] = [set()]
    if world.rank == 0:
        written = [
            {e["step"] for e in run.events() if e["event"] == "skipped" and e["recipe"] == recipe_digest(recipe)}
        ]
    dist.broadcast_object_list(written)
    state.skipped |= written[0]
    found = newest_whole_checkpoint(run, world)
    if found is None:
        return None
    path, tensors, manifest = found
    # A setting that is younger than the checkpoint has, as its default, what was done before there was a choice.
    saved = schema.recipe(schema.Config()) | manifest["about"]["recipe"]
    changed = differences(saved, recipe, accepted)
    if changed:
        raise ValueError(
            f"{path} is of another run:\n  " + "\n  ".join(changed) + "\nStart in a new folder, or "
            "accept the change with --override-resume " + " ".join(c.split(":")[0] for c in changed)
        )
    state.restore(manifest["step"], tensors, manifest["about"])
    return state.step


def newest_whole_checkpoint(run: RunFolder, world: World) -> Loaded | None:
    """The newest checkpoint that every rank has read and found whole; damaged ones are set aside and named."""
    found: list[list[Path]] = [[]]
    if world.rank == 0:
        clean(run.checkpoints)
        found = [find_checkpoints(run.checkpoints)]
    dist.broadcast_object_list(found)
    for path in found[0]:
        problems: list[str | None] = [None] * world.size
        problem, loaded = None, None
        try:
            loaded = load_checkpoint(path)
        except DamagedCheckpointError as error:
            problem = str(error)
        dist.all_gather_object(problems, problem)
        damage = next(filter(None, problems), None)
        if damage is None and loaded is not None:
            return path, *loaded
        if world.rank == 0:
            message = quarantine(path, DamagedCheckpointError(damage))
            show(message, lasting=True)
            run.record("damaged checkpoint", problem=message)
    return None


def initialize_weights(run: RunFolder, world: World, state: TrainState, source: str) -> None:
    """Starts from weights of elsewhere.  Once there is a checkpoint, a resumed run needs them no more."""
    said = state.start_from(Path(source))
    if world.rank == 0:
        run.record("initialized", source=source, weights=said)
        show(f"{source}: {'; '.join(said)}", lasting=True)


def versions() -> dict[str, str]:
    """What this process computes with, which a checkpoint remembers."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
