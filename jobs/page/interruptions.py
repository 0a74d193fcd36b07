"""Where a run was interrupted: marks for its curves, with the cause in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.page.curves import epoch_at, finite
from jobs.page.run_data import RunData
from jobs.page.scales import duration
from vit.history.attempts import Attempt
from vit.run.counts import counted

Kind = Literal["stop", "failure", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """An attempt that ended before the run did, or a step that was not finite."""

    kind: Kind
    step: int  # the last one that was reached
    epoch: float
    time: float  # Unix time at which training ended
    resumed_at: int | None  # step; None if it did not go on
    title: str  # `attempt 3: preempted`
    detail: str  # `step 1,040 (epoch 2.22); resumed at step 938, 102 steps repeated, after 12 s`


def interruptions(run: RunData) -> list[Interruption]:
    """All of them, in the order of time."""
    found = [mark for i in range(len(run.attempts)) if (mark := _of_attempt(run, i)) is not None]
    found += [mark for event in run.events if (mark := _of_rollback(run, event)) is not None]
    return sorted(found, key=lambda mark: mark.time)


def describe_interruptions(marks: Sequence[Interruption]) -> str:
    """`4 stops, 5 failures`; empty if there are none."""
    nouns = {"stop": "stop", "failure": "failure", "rollback": "rollback"}
    numbers = {noun: sum(mark.kind == kind for mark in marks) for kind, noun in nouns.items()}
    return ", ".join(counted(number, noun) for noun, number in numbers.items() if number)


def _of_attempt(run: RunData, i: int) -> Interruption | None:
    attempt = run.attempts[i]
    if attempt.ending in ("running", "finished"):
        return None
    after = next((a for a in run.attempts[i + 1 :] if a.started is not None), None)
    known = [step for a in run.attempts[: i + 1] if (step := a.last_step) is not None]
    resumed_at = after.first_step if after is not None else None
    step = max(known[-1] if known else 0, resumed_at or 0)  # ledgers of older versions lack the last step
    epoch = epoch_at(step, run.curves.values())
    where = f"step {step:,}" + (f" (epoch {epoch:.2f})" if epoch is not None else "")
    if attempt.started is None:
        where = f"before its first step; at {where}"
    why = attempt.why or {"stopped": "stopped", "failed": "failed"}.get(attempt.ending, "killed")
    return Interruption(
        kind="stop" if attempt.ending == "stopped" else "failure",
        step=step,
        epoch=epoch or 0.0,
        time=attempt.ended or attempt.seen,
        resumed_at=resumed_at,
        title=f"attempt {attempt.number}: {why}",
        detail=f"{where}; {_resumed(attempt, after)}",
    )


def _resumed(attempt: Attempt, after: Attempt | None) -> str:
    if after is None or after.started is None:
        return "not resumed"
    repeated = f"{counted(attempt.lost_steps, 'step')} repeated" if attempt.lost_steps else "no step lost"
    waited = duration(max(0.0, after.started - (attempt.ended or attempt.seen)))
    return f"resumed at step {after.first_step or 0:,} after {waited}, {repeated}"


def _of_rollback(run: RunData, event: dict[str, object]) -> Interruption | None:
    reached, step, time = (finite(event.get(name)) for name in ("reached", "step", "time"))
    if event["event"] != "rolled back" or reached is None or step is None or time is None:
        return None
    return Interruption(
        kind="rollback",
        step=int(reached),
        epoch=epoch_at(int(reached), run.curves.values()) or 0.0,
        time=time,
        resumed_at=int(step),
        title=f"step {int(reached):,} was not finite",
        detail=f"rolled back to step {int(step):,}, {counted(int(reached - step), 'step')} repeated",
    )
