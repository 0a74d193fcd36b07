"""What Weights & Biases is told of a run beyond its learning curve.  Imports no torch."""

from collections.abc import Sequence
from typing import Any

from vit.history.attempts import Attempt, read_attempts
from vit.history.time_spent import time_spent
from vit.run.folder import RunFolder
from vit.run.jsonl import Record, read_lines
from vit.run.metrics import best_evaluation, top1_of


def attempt_of(record: Record, attempts: Sequence[Attempt]) -> int | None:
    """The number of the attempt that wrote a record; None if it is not known, as for records of older versions."""
    time = record.get("time")
    if not isinstance(time, int | float):
        return None
    return next((a.number for a in reversed(attempts) if a.started is not None and a.started <= time), None)


def summary(run: RunFolder) -> dict[str, Any]:
    """The result of a run so far: accuracies (of the EMA, if there is one), goodput, attempts, whether it is finished.

    From metrics.jsonl and the ledger, not from what was sent.  Raises OSError if they cannot be read.
    """
    evaluations = [record for record in read_lines(run.metrics) if "val_top1" in record]
    attempts = read_attempts(run.events())
    spent = time_spent(attempts)
    out: dict[str, Any] = {
        "finished": run.finished() is not None,
        "attempts": len(attempts),
        "repeated_steps": sum(attempt.lost_steps for attempt in attempts),
        "hours_on_nodes": round(spent.on_nodes / 3600, 4),
    }
    if spent.goodput is not None:
        out["goodput"] = round(spent.goodput, 4)
    if (best := best_evaluation(evaluations)) is not None:
        out |= {"best_top1": top1_of(best), "best_step": best["step"], "last_top1": top1_of(evaluations[-1])}
    return out
