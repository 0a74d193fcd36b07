"""Rank 0's record of how long all ranks take for their own parts of a step, and of those that are slow.

`logs/rank-times.jsonl` has a line for every few minutes, the ledger an event for each rank that becomes slow or
recovers.  Imports no torch.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vit.config.sections import ChecksConfig
from vit.run.folder import RunFolder
from vit.run.jsonl import append_lines, line
from vit.run.progress import show
from vit.run.slow_ranks import WORK, Change, SlowRanks, Totals, add

SLOW, RECOVERED = "slow rank", "rank recovered"  # events in the ledger
FIRST_WRITE_SECONDS, WRITE_SECONDS = 10.0, 300.0  # time until the first line, which doubles up to the second value

_AT = {
    "data": "waits for images",
    "augmentation": "augments images",
    "forward and backward": "computes forward and backward",
    "update": "updates the weights",
}


def path_of(logs: Path) -> Path:
    """The file of the times of all ranks."""
    return logs / "rank-times.jsonl"


class RankLog:
    """Watches the ranks of one attempt.  `places` are the node and the GPU's UUID of each; empty on a CPU."""

    def __init__(self, run: RunFolder, checks: ChecksConfig, places: Sequence[tuple[str, str]]) -> None:
        self.run, self.places = run, places
        self.slow_ranks = SlowRanks(checks.slow_rank_ratio, checks.slow_rank_seconds)
        self._unwritten: list[list[float]] = []
        self._interval = FIRST_WRITE_SECONDS
        self._due = time.monotonic() + self._interval

    def observe(self, totals: Totals) -> dict[str, float]:
        """Adds what the ranks have measured since the last call; returns fields for the learning curve."""
        if not totals:
            return {}
        self._unwritten = add(self._unwritten, totals)
        if time.monotonic() > self._due:
            self.write()
        for change in self.slow_ranks.observe(totals):
            self._report(change)
        if self.slow_ranks.slowest is None:
            return {}
        rank, ratio = self.slow_ranks.slowest
        return {"slowest_rank": rank, "slowest_ratio": round(ratio, 3)}

    def write(self) -> None:
        """Appends what was measured since the last line.  A disk that cannot be written loses it, nothing else."""
        if any(row[0] for row in self._unwritten):
            ranks = [[round(value, 4) for value in row] for row in self._unwritten]
            record = {"time": round(time.time(), 3), "nodes": [node for node, _ in self.places], "ranks": ranks}
            path = path_of(self.run.logs)
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)  # not there under torchrun
                append_lines(path, line(record), durable=False)
        self._unwritten = []
        self._interval = min(2 * self._interval, WRITE_SECONDS)
        self._due = time.monotonic() + self._interval

    def _report(self, change: Change) -> None:
        node, gpu = self.places[change.rank]
        event: dict[str, Any] = {"rank": change.rank, "node": node, "ratio": round(change.comparison.ratio, 3)}
        if change.what is None:
            self.run.note(RECOVERED, **event)
            show(f"rank {change.rank} on {node} is as fast as the others again", lasting=True)
            return
        seconds, others = (each[change.what] for each in (change.comparison.seconds, change.comparison.others))
        event |= {"gpu": gpu, "what": WORK[change.what], "seconds": round(seconds, 4), "others": round(others, 4)}
        self.run.note(SLOW, **event)
        show(f"{describe(event)}; {advice(event)}", lasting=True)


def describe(event: Mapping[str, Any]) -> str:
    """`rank 3 on n2 is slow: 1.60 times the median; it waits for images 0.310 s of each step, others 0.020 s`."""
    at = _AT.get(str(event.get("what")), "works")
    ratio, seconds, others = (_number(event.get(name)) for name in ("ratio", "seconds", "others"))
    return (
        f"rank {event.get('rank')} on {event.get('node')} is slow: {ratio:.2f} times the median; "
        f"it {at} {seconds:.3f} s of each step, others {others:.3f} s"
    )


def _number(value: object) -> float:
    """0 for a value that is damaged."""
    return value if isinstance(value, float) and math.isfinite(value) else 0.0


def advice(event: Mapping[str, Any]) -> str:
    """Where to look for the cause, and how to avoid the node."""
    node, computes = event.get("node"), str(event.get("what")) in ("forward and backward", "update")
    if event.get("what") == "data":
        look = f"see whether other processes use the cores of {node}, and whether it reads its disk slowly"
    elif computes and event.get("gpu"):
        look = f"`nvidia-smi -q -d PERFORMANCE` on {node} shows whether {event.get('gpu')} is throttled"
    else:
        look = f"see whether other processes use the cores of {node}"
    return f"{look}; with --exclude-slow, the next requeue of a job leaves the node"
