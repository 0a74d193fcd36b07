"""The results of checks: what `doctor.py` prints, one line each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["OK", "WARN", "FAIL"]  # ready; works, but worse than it could; a run would fail or lose work
LEVELS: tuple[Level, ...] = ("OK", "WARN", "FAIL")


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str  # a short name: "torch", "run folder", "preemption"
    level: Level
    text: str  # what was found, and what follows from it
    advice: str = ""  # what to do; empty if it is OK


def exit_code(findings: Sequence[Finding]) -> int:
    """0 if all is well, 1 with warnings, 2 if a check failed."""
    return max((LEVELS.index(finding.level) for finding in findings), default=0)


def format_bytes(count: float) -> str:
    """`4.1 MB`, `230 GB`."""
    value, units = count / 1000, ["kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.{0 if value >= 99.5 else 1}f} {units[0]}"
