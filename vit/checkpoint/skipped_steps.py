"""Steps whose loss, gradient or weights were not finite: recorded in the ledger, and skipped from then on."""

import json
import zlib
from collections.abc import Collection, Mapping
from typing import Any

from vit.checkpoint.train_state import TrainState
from vit.config.paths import shell_word
from vit.distributed.world import World
from vit.run.folder import RunFolder
from vit.run.hints import command

REPLAYABLE = 3  # skipped steps, the last ones, whose replay begins at a checkpoint just before them


class NotFiniteError(FloatingPointError):
    """A loss, gradient or weight is NaN or infinite; all ranks raise it for the same step."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"the {what} of step {step:,} is not finite")
        self.what, self.step = what, step  # the first such step, counted from 1 as in the learning curve


def record_skip(
    run: RunFolder, world: World, state: TrainState, recipe: Mapping[str, Any], error: NotFiniteError, max_skipped: int
) -> None:
    """Records that a step is to be skipped.  From then on, the run is a function of its config and the skipped steps.

    Raises FloatingPointError if `max_skipped` steps are skipped already.
    """
    if len(state.skipped) >= max_skipped:
        before = ", ".join(f"{step:,}" for step in sorted(state.skipped))
        history = f", after steps {before} were skipped; optim.max_skipped allows {max_skipped}" if before else ""
        advice = f"a lower optim.lr may help; {replay_hint(run, error.step)}"
        raise FloatingPointError(f"{error}{history}; {advice}")
    state.skipped.add(error.step)  # also kept in memory: the ledger line may be delayed while the disk is full
    if world.rank == 0:
        run.record("skipped", step=error.step, why=str(error), recipe=recipe_checksum(recipe))


def states_before(skipped: Collection[int]) -> set[int]:
    """The steps whose checkpoints are kept for `vit.replay`: those just before the last few skipped steps."""
    return {step - 1 for step in sorted(skipped)[-REPLAYABLE:]}


def replay_hint(run: RunFolder, step: int) -> str:
    """How to find out why a step was not finite."""
    return f"find out why: {command('vit.replay', shell_word(run.path), '--step', str(step), '--anomaly')}"


def recipe_checksum(recipe: Mapping[str, Any]) -> str:
    """CRC-32 of a recipe.  A step that failed under one recipe is tried again under another one."""
    return f"{zlib.crc32(json.dumps(recipe, sort_keys=True).encode()):08x}"
