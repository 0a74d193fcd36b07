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
    checkpoints_lost,
    find_checkpoints,
    quarantine,
    remove_partial_saves,
)
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.saved_classes import DataSetClasses, check_resumed_classes
from vit.checkpoint.skipped_steps import recipe_checksum
from vit.checkpoint.train_state import TrainState
from vit.config import schema
from vit.config.recipe import check_recipe, differences, recipe_of
from vit.distributed.world import World, on_rank_0
from vit.model.weight_fit import shortened
from vit.run.folder import RunFolder, recorded_save
from vit.run.progress import show

LoadedCheckpoint = tuple[Path, dict[str, Tensor], dict[str, Any]]  # its path, tensors and manifest


def resume(
    run: RunFolder,
    world: World,
    state: TrainState,
    recipe: Mapping[str, Any],
    classes: DataSetClasses,
    allowed_changes: list[str],
) -> int | None:
    """Restores the newest intact checkpoint and returns its step; None if the run has not saved any step yet.

    Also adds to the state the steps that the ledger says to skip under this recipe.  Raises UserError if the recipe or
    the classes differ from the checkpoint's in more than `allowed_changes`, or if a step was saved but there is no
    checkpoint: a run never begins again by itself.  Raises OSError on all ranks if one cannot read a file.
    """
    skipped, saved_step = on_rank_0(world, lambda: _history(run, recipe))
    state.skipped |= skipped
    found = newest_intact_checkpoint(run, world)
    if found is None:
        if not saved_step:
            return None
        raise checkpoints_lost(run.checkpoints, saved_step)
    path, tensors, manifest = found
    if saved_step is not None and manifest["step"] < saved_step and world.rank == 0:
        show(f"{path} is the newest intact checkpoint, although step {saved_step:,} was saved", lasting=True)
    # Settings newer than the checkpoint get their default, which is what the code did before they existed.
    saved = recipe_of(schema.Config()) | manifest["about"]["recipe"]
    check_recipe(path, saved, recipe, allowed_changes, has_begun=manifest["step"] > 0)
    if world.rank == 0 and (changed := differences(saved, recipe)):
        run.note("settings changed", step=manifest["step"], settings=changed)
    check_resumed_classes(path, manifest["about"], classes, allowed_changes)
    state.restore(manifest["step"], tensors, manifest["about"])
    return state.step


def _history(run: RunFolder, recipe: Mapping[str, Any]) -> tuple[set[int], int | None]:
    """The steps that the ledger says to skip under this recipe, and the newest step that was saved."""
    checksum, events = recipe_checksum(recipe), run.events()
    skipped = {e["step"] for e in events if e["event"] == "skipped" and e["recipe"] == checksum}
    return skipped, recorded_save(events)


def newest_intact_checkpoint(run: RunFolder, world: World) -> LoadedCheckpoint | None:
    """The newest checkpoint that every rank could read without errors; damaged ones are quarantined and reported.

    Raises OSError on all ranks if one of them cannot read a checkpoint now: it may be intact.
    """

    def candidates() -> list[Path]:
        remove_partial_saves(run.checkpoints)
        return find_checkpoints(run.checkpoints)

    for path in on_rank_0(world, candidates):
        problems: list[DamagedCheckpointError | OSError | None] = [None] * world.size
        problem: DamagedCheckpointError | OSError | None = None
        loaded = None
        try:
            loaded = load_checkpoint(path)
        except (DamagedCheckpointError, OSError) as error:
            problem = error
        dist.all_gather_object(problems, problem)
        for unreadable in problems:
            if isinstance(unreadable, OSError):
                hint = f"{path} may be intact, and nothing was changed; if this error stays, move that folder away"
                raise OSError(unreadable.errno, f"{unreadable.strerror} ({hint})", unreadable.filename)
        damage = next(filter(None, problems), None)
        if damage is None and loaded is not None:
            return path, *loaded
        if world.rank == 0:
            assert isinstance(damage, DamagedCheckpointError)
            message = quarantine(path, damage)
            show(message, lasting=True)
            run.record("damaged checkpoint", problem=message)
    return None


def initialize_weights(run: RunFolder, world: World, state: TrainState, source: str, new_head: bool = False) -> None:
    """Loads pretrained weights (`init_from`) and records it; not needed once the run has a checkpoint."""
    report = state.load_initial_weights(Path(source), new_head)
    if world.rank == 0:
        run.record("initialized", source=source, weights=report)
        show(f"{source}: {shortened(report)}", lasting=True)


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries in use, for a checkpoint's metadata."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
