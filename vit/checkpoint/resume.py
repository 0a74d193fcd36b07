"""Restores a run from its newest intact checkpoint, on any number of ranks."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vit.checkpoint.format import (
    DamagedCheckpointError,
    find_checkpoints,
    quarantine,
    recipe_differences,
    remove_partial_saves,
)
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.skipped_steps import recipe_checksum
from vit.checkpoint.train_state import TrainState
from vit.config import schema
from vit.config.user_error import UserError
from vit.distributed.world import World
from vit.run.folder import RunFolder
from vit.run.progress import show

LoadedCheckpoint = tuple[Path, dict[str, Tensor], dict[str, Any]]  # its path, tensors and manifest


def resume(
    run: RunFolder, world: World, state: TrainState, recipe: Mapping[str, Any], allowed_changes: list[str]
) -> int | None:
    """Restores the newest intact checkpoint and returns its step; None if there is none.

    Also adds to the state the steps that the ledger says to skip under this recipe.  Raises UserError if the recipe
    differs from the checkpoint's in more than `allowed_changes`.
    """
    skipped: list[set[int]] = [set()]
    if world.rank == 0:
        checksum = recipe_checksum(recipe)
        skipped = [{e["step"] for e in run.events() if e["event"] == "skipped" and e["recipe"] == checksum}]
    dist.broadcast_object_list(skipped)
    state.skipped |= skipped[0]
    found = newest_intact_checkpoint(run, world)
    if found is None:
        return None
    path, tensors, manifest = found
    # Settings newer than the checkpoint get their default, which is what the code did before they existed.
    saved = schema.recipe(schema.Config()) | manifest["about"]["recipe"]
    changes = recipe_differences(saved, recipe, allowed_changes)
    if changes:
        raise UserError(
            f"{path} was written with other settings:\n  " + "\n  ".join(changes) + "\nUse a new run folder, or "
            "accept the changes with --override-resume " + " ".join(change.split(":")[0] for change in changes)
        )
    state.restore(manifest["step"], tensors, manifest["about"])
    return state.step


def newest_intact_checkpoint(run: RunFolder, world: World) -> LoadedCheckpoint | None:
    """The newest checkpoint that every rank could read without errors; damaged ones are quarantined and reported."""
    candidates: list[list[Path]] = [[]]
    if world.rank == 0:
        remove_partial_saves(run.checkpoints)
        candidates = [find_checkpoints(run.checkpoints)]
    dist.broadcast_object_list(candidates)
    for path in candidates[0]:
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
    """Loads pretrained weights (`init_from`) and records it; not needed once the run has a checkpoint."""
    report = state.load_initial_weights(Path(source))
    if world.rank == 0:
        run.record("initialized", source=source, weights=report)
        show(f"{source}: {'; '.join(report)}", lasting=True)


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries in use, for a checkpoint's metadata."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
