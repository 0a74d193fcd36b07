"""How long the training steps of a rank took, for percentiles.  Imports no torch, and never waits for the device.

Each line of `logs/rank-N.steps.jsonl` is a histogram of the steps since the line before.  A killed rank loses only the
steps after its last line.
"""

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vit.run.jsonl import append_lines, line

BUCKETS_PER_E = 50  # each bucket is 2 % wide
FIRST_WRITE_SECONDS, WRITE_SECONDS = 10.0, 300.0  # time until the first line, which doubles up to the second value


class StepTimes:
    """Counts the seconds between the ends of steps on the host.  `tick` takes a microsecond, but for writing."""

    def __init__(self, logs: Path, rank: int) -> None:
        self.path = path_of(logs, rank)
        self._ended: float | None = None  # time.perf_counter() at the end of the last step
        self._counts: dict[int, int] = {}
        self._longest = 0.0
        self._interval = FIRST_WRITE_SECONDS
        self._due = time.perf_counter() + self._interval

    def tick(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        if self._ended is not None:
            seconds = max(now - self._ended, 1e-9)
            bucket = math.floor(BUCKETS_PER_E * math.log(seconds))
            self._counts[bucket] = self._counts.get(bucket, 0) + 1
            self._longest = max(self._longest, seconds)
        self._ended = now
        if now > self._due:
            self.write()
            self._interval = min(2 * self._interval, WRITE_SECONDS)
            self._due = now + self._interval

    def exclude(self) -> None:
        """The next step's time is not counted: it contains something else, such as an evaluation."""
        self._ended = None

    def write(self) -> None:
        """Appends what was counted since the last call.  A disk that cannot be written loses it, nothing else."""
        if self._counts:
            record = {"time": round(time.time(), 3), "longest": round(self._longest, 6), "steps": self._counts}
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)  # not there under torchrun
                append_lines(self.path, line(record), durable=False)
        self._counts, self._longest = {}, 0.0


def path_of(logs: Path, rank: int) -> Path:
    """The file of a rank's histograms."""
    return logs / f"rank-{rank}.steps.jsonl"


def merge(records: Iterable[Mapping[str, Any]]) -> tuple[dict[int, int], float]:
    """The sum of histograms, by bucket, and the longest step in seconds; damaged values are left out."""
    counts: dict[int, int] = {}
    longest = 0.0
    for record in records:
        steps, seconds = record.get("steps"), record.get("longest")
        for bucket, count in steps.items() if isinstance(steps, dict) else ():
            with suppress(ValueError, TypeError):
                counts[int(bucket)] = counts.get(int(bucket), 0) + max(0, int(count))
        if isinstance(seconds, int | float) and math.isfinite(seconds):
            longest = max(longest, seconds)
    return counts, longest


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The seconds that this share of the steps did not exceed, to 1 %; None if there are no steps."""
    left = share * sum(counts.values())
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 1e-9 and counts[bucket]:
            return math.exp((bucket + 0.5) / BUCKETS_PER_E)
    return None
