"""Steps whose loss, gradient or weights were not finite: recorded, and skipped from then on."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from vit.checkpoint.train_state import TrainState
from vit.distributed.world import World
from vit.run.folder import RunFolder


class NotFiniteError(FloatingPointError):
    """A loss, a gradient or weights that are no numbers, or infinite; all ranks raise it for the same step."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"the {what} of step {step:,} is not finite")
        self.what, self.step = what, step  # the first such step, as the learning curve counts: from 1


def record_skip(
    run: RunFolder, world: World, state: TrainState, recipe: Mapping[str, Any], bad: NotFiniteError, at_most: int
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
        run.record("skipped", step=bad.step, why=str(bad), recipe=recipe_digest(recipe))


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """What a step failed under: another recipe, as a lower learning rate, may do without skipping it."""
    return f"{zlib.crc32(json.dumps(recipe, sort_keys=True).encode()):08x}"
