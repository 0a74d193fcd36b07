"""Percentiles of the step times of each rank, from the histograms that the ranks wrote."""

import re
from dataclasses import dataclass
from pathlib import Path

from vit.run.jsonl import read_lines
from vit.run.step_times import merge, percentile

SHARES = (0.05, 0.5, 0.95, 0.99)


@dataclass(frozen=True)
class RankTimes:
    """Seconds per step of one rank, over all attempts."""

    rank: int
    steps: int  # that were measured
    percentiles: tuple[float, ...]  # one for each of SHARES
    longest: float


def read_step_times(logs: Path) -> list[RankTimes]:
    """Those of all ranks, by rank; empty if the run is of a version that did not record them.  Raises OSError."""
    out = []
    for path in logs.glob("rank-*.steps.jsonl") if logs.is_dir() else ():
        match = re.fullmatch(r"rank-(\d+)\.steps\.jsonl", path.name)
        counts, longest = merge(read_lines(path)) if match else ({}, 0.0)
        found = [percentile(counts, share) for share in SHARES]
        known = tuple(min(value, longest or value) for value in found if value is not None)
        if match and len(known) == len(SHARES):
            out.append(RankTimes(int(match[1]), sum(counts.values()), known, max(longest, known[-1])))
    return sorted(out, key=lambda times: times.rank)
