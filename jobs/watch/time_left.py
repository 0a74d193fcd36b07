"""When a run will end, from its learning curve: the steps that remain, and evaluations and checkpoints between them."""

import time

from vit.history.attempts import Attempt
from vit.history.learning_curve import integer, number
from vit.run.jsonl import Record


def expected_end(trained: Record, newest: Record, attempt: Attempt | None) -> float | None:
    """When the last step will be done, if nothing interrupts the run's newest attempt.

    None if it should be over by now: nobody knows how long something takes that hangs.  A record's `seconds_left`
    counts steps only; what evaluations and checkpoints took in its attempt is added.
    """
    left, recorded = number(trained, "seconds_left"), number(trained, "time")
    if left is None:
        return None
    now = time.time()
    seconds = newest.get("seconds")
    seconds = seconds if isinstance(seconds, dict) else {}
    steps = sum(number(seconds, name) or 0.0 for name in ("data", "step", "sync"))
    if steps > 0:
        share = left / steps
        left += (number(seconds, "checkpoint") or 0.0) * share
        left += (number(seconds, "evaluate") or 0.0) * (_evaluations_left(newest, attempt) or share)
    # Of an earlier attempt, or an older version: its steps start now.
    ends = left + (now if recorded is None or (attempt and recorded < attempt.began) else recorded)
    return ends if ends >= now else None


def _evaluations_left(newest: Record, attempt: Attempt | None) -> float | None:
    """The evaluations to come over those of the newest attempt; None if they do not follow the number of steps.

    They do unless epochs count pixels: then they follow the time of the steps, as checkpoints always do.  Images that
    grow make the steps slower, but no evaluation.
    """
    if attempt is None or attempt.first_step is None or (number(newest, "time") or 0.0) < attempt.began:
        return None
    first, step, steps = attempt.first_step, integer(newest, "step"), integer(newest, "steps")
    epoch, epochs = number(newest, "epoch"), number(newest, "epochs")
    if step is None or step <= first or not steps or epoch is None or not epochs:
        return None
    return (steps - step) / (step - first) if abs(epoch / epochs - step / steps) < 0.01 else None
