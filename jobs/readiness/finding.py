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
