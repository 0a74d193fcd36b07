"""Learning curves as columns of numbers, from the records of metrics.jsonl."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vit.run.jsonl import Record

VALUES = (
    *("loss", "lr", "grad_norm", "images_per_second"),
    *("val_loss", "val_loss_average", "val_top1", "val_top1_average", "val_top5", "val_top5_average"),
)

SMALLEST, LARGEST = 1e-30, 1e30  # smaller numbers are drawn as 0, larger ones are damage
TIMES = (0.0, 1e11)  # Unix times that can be: until the year 5138


@dataclass
class Curve:
    """One value over the course of a run; the lists have the same length."""

    steps: list[int] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # Unix times in seconds; NaN if not recorded
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    def has_times(self) -> bool:
        """Whether the time of every point is known."""
        return bool(self.times) and not any(map(math.isnan, self.times))

    def pick(self, indices: Sequence[int]) -> "Curve":
        """The points with these indices."""
        columns = (self.steps, self.epochs, self.times, self.values)
        return Curve(*([column[i] for i in indices] for column in columns))  # type: ignore[arg-type]


def read_curves(records: Iterable[Record]) -> tuple[dict[str, Curve], int]:
    """The curves by name, without those that have no point, and the number of values that are no finite numbers.

    Records are sorted by step; without a step or an epoch they are left out, and count as one such value.
    """
    found = {name: Curve() for name in VALUES}
    damaged = 0
    for record in sorted(filter(_has_step, records), key=lambda record: int(record["step"])):
        step, epoch, time = int(record["step"]), epoch_of(record), time_of(record)
        if epoch is None:
            damaged += 1
            continue
        for name in VALUES:
            if record.get(name) is None:
                continue
            value = finite(record[name])
            if value is None:
                damaged += 1
                continue
            curve = found[name]
            curve.steps.append(step)
            curve.epochs.append(epoch)
            curve.times.append(time)
            curve.values.append(value)
    return {name: curve for name, curve in found.items() if len(curve)}, damaged


def _has_step(record: Record) -> bool:
    step = finite(record.get("step"))
    return step is not None and 0 <= step < 1e15


def epoch_of(record: Record) -> float | None:
    """The epoch of a record; None if it is not there and does not follow from the steps."""
    epoch = finite(record.get("epoch"))
    if epoch is None:
        step, steps, epochs = (finite(record.get(name)) for name in ("step", "steps", "epochs"))
        epoch = step * epochs / steps if step is not None and steps and epochs else None
    return epoch if epoch is not None and 0 <= epoch < 1e9 else None


def time_of(record: Record) -> float:
    """The Unix time of a record; NaN if it is not there or cannot be."""
    time = finite(record.get("time"))
    return time if time is not None and TIMES[0] <= time <= TIMES[1] else math.nan


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of a thousand digits
        return None
    return number if SMALLEST <= abs(number) <= LARGEST else 0.0 if abs(number) < SMALLEST else None


def epoch_at(step: int, curves: Iterable[Curve]) -> float | None:
    """The epoch that a step belongs to, interpolated between the points of the curves."""
    for curve in curves:
        if curve.steps and curve.steps[-1] > 0:
            i = min(bisect_right(curve.steps, step), len(curve) - 1)
            if curve.steps[i]:
                return step * curve.epochs[i] / curve.steps[i]
    return None
