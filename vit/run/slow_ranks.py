"""Finds ranks that are slower than the others, from the time that each spends on its own part of a step.

All ranks take the same time for a step: the fast ones wait for the slow ones, while gradients are summed.  What is
compared is how long a step would take if all ranks were like this one.  Imports no torch.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

# What a rank measures: its number of steps, and seconds of them all.  "decode": of each decoding thread, on average;
# the threads work ahead, so it is no part of the others.  "data": waiting for the decoded batch.  "wait": from the last
# gradients of this rank until they are summed over all ranks.
FIELDS = ("steps", "decode", "data", "augment", "forward_backward", "wait", "update")
# What a rank can be slow at, and what the time of a message is spent on.
WORK = {"data": "data", "augment": "augmentation", "forward_backward": "forward and backward", "update": "update"}

PARTS = 6  # of the window; a hiccup in one of them is not enough
MIN_PARTS = 3  # where records are rare, and the window therefore has fewer parts
MIN_STEPS = 5  # of a part
OTHER_WHAT = 1.25  # times as much must be lost at something else, before a rank is said to be slow at that

Totals = Sequence[Sequence[float]]  # FIELDS of each rank


@dataclass(frozen=True)
class Comparison:
    """One rank, compared with the others; seconds of a step."""

    ratio: float  # of the time that a step would take if all ranks were like this one, to that of the median rank
    seconds: dict[str, float]  # by WORK: what it takes this rank
    others: dict[str, float]  # and the median rank

    @property
    def lost(self) -> dict[str, float]:
        """How much longer than the median rank it takes, by WORK."""
        return {name: self.seconds[name] - self.others[name] for name in WORK}


def compare(totals: Totals) -> list[Comparison]:
    """Compares all ranks with their median; of two ranks, or two halves, with the faster one: a whole node may be slow.

    A rank is late with its data only as far as its decoding takes longer than that of the median rank.  If the decoding
    of all ranks is the bottleneck, only the slowest one ever waits for it, however small the difference is.
    """
    steps = [dict(zip(FIELDS, (value / max(row[0], 1.0) for value in row), strict=True)) for row in totals]
    summing = min(step["wait"] for step in steps)  # the slowest rank waits for no other
    decode = median_low([step["decode"] for step in steps])
    work = [dict.fromkeys(WORK, 0.0) for _ in steps]
    for mine, step in zip(work, steps, strict=True):
        mine |= {name: step[name] for name in WORK if name != "data"}
        computing = sum(mine.values()) + summing
        late = max(min(step["data"], step["decode"] - decode), step["decode"] - computing, 0.0)
        whole = sum(step[name] for name in WORK) + step["wait"]
        mine["data"] = min(late, max(0.0, whole - computing))
    times = [sum(mine.values()) + summing for mine in work]
    usual = median_low(times)
    others = {name: median_low([mine[name] for mine in work]) for name in WORK}
    return [Comparison(time / usual if usual else 1.0, mine, others) for time, mine in zip(times, work, strict=True)]


@dataclass(frozen=True)
class Change:
    """A rank became slow, is slow at something else, or has recovered."""

    rank: int
    what: str | None  # one of WORK; None if it has recovered
    comparison: Comparison


class SlowRanks:
    """Compares the ranks over a sliding window of so many seconds of training."""

    def __init__(self, ratio: float, seconds: float) -> None:
        self.ratio, self.seconds = ratio, seconds
        self.slow: dict[int, str] = {}  # ranks that are slow now, and at what
        self.slowest: tuple[int, float] | None = None  # over the newest window: a rank and its ratio
        self._part: list[list[float]] = []  # the unfinished part
        self._parts: deque[list[list[float]]] = deque(maxlen=PARTS)

    def observe(self, totals: Totals) -> list[Change]:
        """Adds what the ranks have measured; returns what has changed."""
        self._part = add(self._part, totals)
        if min(row[0] for row in self._part) < MIN_STEPS or _training_seconds(self._part) < self.seconds / PARTS:
            return []
        self._parts.append(self._part)
        self._part = []
        parts = self._newest()
        return self._changes(parts) if parts else []

    def _newest(self) -> list[list[list[float]]]:
        """The newest parts that fill a window; empty if there are not enough of them yet."""
        parts: list[list[list[float]]] = []
        for part in reversed(self._parts):
            parts.append(part)
            if len(parts) >= MIN_PARTS and sum(map(_training_seconds, parts)) >= 0.999 * self.seconds:
                return parts
        return []

    def _changes(self, parts: list[list[list[float]]]) -> list[Change]:
        window: list[list[float]] = []
        for part in parts:
            window = add(window, part)
        ranks, of_parts, changes = compare(window), [compare(part) for part in parts], []
        recovered = 1 + (self.ratio - 1) / 2
        for rank, found in enumerate(ranks):
            before = self.slow.get(rank)
            slow_parts = sum(part[rank].ratio > recovered for part in of_parts)
            what: str | None = max(WORK, key=lambda name: found.lost[name])
            if before is None and (found.ratio < self.ratio or slow_parts < 2 / 3 * len(parts)):
                continue
            if before is not None and found.ratio < recovered:
                what = None
            elif before is not None and found.lost[str(what)] < OTHER_WHAT * found.lost[before]:
                what = before
            if what != before:
                changes.append(Change(rank, what, found))
            if what is None:
                del self.slow[rank]
            else:
                self.slow[rank] = what
        slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].ratio)
        self.slowest = slowest, ranks[slowest].ratio
        return changes


def add(first: Totals, second: Totals) -> list[list[float]]:
    """The sum of two totals, the first of which may be empty."""
    pairs = zip(first or [[0.0] * len(FIELDS)] * len(second), second, strict=True)
    return [[a + b for a, b in zip(one, other, strict=True)] for one, other in pairs]


def _training_seconds(totals: Totals) -> float:
    """The time of the steps, which is the same for all ranks."""
    first = dict(zip(FIELDS, totals[0], strict=True))
    return sum(first[name] for name in WORK) + first["wait"]
