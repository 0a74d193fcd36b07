"""What each rank's own part of a step took, from the times that rank 0 wrote of all ranks."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vit.run.jsonl import read_lines
from vit.run.rank_log import path_of
from vit.run.slow_ranks import FIELDS, compare

MOST = 1e9  # seconds, or steps: more are damage


@dataclass
class RankTotals:
    """One rank on one node, over all attempts."""

    rank: int
    node: str
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0.0))
    ratio_times_steps: float = 0.0

    @property
    def steps(self) -> float:
        """Number of steps that were measured."""
        return self.seconds["steps"]

    @property
    def ratio(self) -> float:
        """Of the time of a step, if all ranks were like this one, to that of the median rank."""
        return self.ratio_times_steps / self.steps


def read_rank_times(logs: Path) -> list[RankTotals]:
    """All ranks, by rank and node; damaged lines are left out.  Raises OSError."""
    out: dict[tuple[int, str], RankTotals] = {}
    for record in read_lines(path_of(logs)):
        rows, nodes = _valid(record.get("ranks")), record.get("nodes")
        if rows is None or not isinstance(nodes, list) or len(nodes) != len(rows):
            continue
        for rank, (row, node, compared) in enumerate(zip(rows, nodes, compare(rows), strict=True)):
            found = out.setdefault((rank, str(node)), RankTotals(rank, str(node)))
            for name, value in zip(FIELDS, row, strict=True):
                found.seconds[name] += value
            found.ratio_times_steps += compared.ratio * row[0]
    return [out[key] for key in sorted(out)]


def _valid(rows: object) -> list[list[float]] | None:
    """The rows of a record, if they are numbers that can be compared."""
    with suppress(TypeError, ValueError, OverflowError):
        if isinstance(rows, list) and rows:
            numbers = [[float(value) for value in row] for row in rows]
            plausible = all(0 <= value < MOST for row in numbers for value in row)
            if plausible and all(len(row) == len(FIELDS) and row[0] >= 1 for row in numbers):
                return numbers
    return None
