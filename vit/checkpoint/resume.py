"""Takes over a run where its newest whole checkpoint left it, on any number of ranks."""

import json
import platform
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vit.checkpoint.format import (
    DamagedCheckpointError,
    clean,
    differences,
    find_checkpoints,
    load_checkpoint,
    quarantine,
)
from vit.checkpoint.train_state import State
from vit.config import schema
from vit.distributed.world import World
from vit.run.folder import RunFolder
from vit.run.metrics import show
from vit.training.step import NotFiniteError

Loaded = tuple[Path, dict[str, Tensor], dict[str, Any]]  # a checkpoint, its tensors and its manifest


def resume(run: RunFolder, world: World, state: State, recipe: Mapping[str, Any], accepted: list[str]) -> int | None:
    """Restores the newest whole checkpoint and returns its step; None if there is none.

    The state also knows from here on which steps this recipe is to skip.  Raises ValueError for another recipe, unless
    all that differs is `accepted`.
    """
    written: list[set[int]] = [set()]
    if world.rank == 0:
        written = [{e["step"] for e in run.events() if e["event"] == "skipped" and e["recipe"] == _digest(recipe)}]
    dist.broadcast_object_list(written)
    state.skipped |= written[0]
    found = newest(run, world)
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


def newest(run: RunFolder, world: World) -> Loaded | None:
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


def begin(run: RunFolder, world: World, state: State, source: str) -> None:
    """Starts from weights of elsewhere.  Once there is a checkpoint, a resumed run needs them no more."""
    said = state.start_from(Path(source))
    if world.rank == 0:
        run.record("initialised", source=source, weights=said)
        show(f"{source}: {'; '.join(said)}", lasting=True)


def skip(
    run: RunFolder, world: World, state: State, recipe: Mapping[str, Any], bad: NotFiniteError, at_most: int
) -> None:
    """Writes down that a step is to be skipped: from here on the run is a function of its config and of that.

    Raises FloatingPointError if as many as may be are skipped already.
    """
    if len(state.skipped) >= at_most:
        before = ", ".join(f"{step:,}" for step in sorted(state.skipped))
        after = f", after steps {before} were skipped for that; optim.max_skipped allows {at_most}" if before else ""
        raise FloatingPointError(f"{bad}{after}; a lower optim.lr may help")
    state.skipped.add(bad.step)  # a full disk may not take it yet
    if world.rank == 0:
        run.record("skipped", step=bad.step, why=str(bad), recipe=_digest(recipe))


def _digest(recipe: Mapping[str, Any]) -> str:
    """What a step failed under: another recipe, as a lower learning rate, may do without skipping it."""
    return f"{zlib.crc32(json.dumps(recipe, sort_keys=True).encode()):08x}"


def versions() -> dict[str, str]:
    """What this process computes with, which a checkpoint remembers."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
