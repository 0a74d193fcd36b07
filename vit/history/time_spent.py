"""Where the time of a run went, and its goodput.  Imports no torch.

Every second from the first submission on is in one category.  Goodput is the share of the time on the nodes that went
into training steps that count: not into starting, waiting for data, saving, evaluating, or steps that were repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vit.history.attempts import Attempt
from vit.run.progress import format_duration

# Category and the phases of an attempt (vit/run/heartbeat.py) that belong to it, in the order in which they are shown.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "queue": (),  # waiting for Slurm
    "start": ("start", "stage", "rollback"),  # imports, node check, copies of the data, restoring the state
    "compile": ("compile",),
    "data": ("data",),  # waiting for images
    "step": ("step", "sync"),
    "checkpoint": ("checkpoint",),  # as far as training waits for it
    "evaluate": ("evaluate",),
    "lost": (),  # repeated steps, and the time until a failure was noticed
    "other": ("other",),
}
_CATEGORY = {phase: category for category, phases in CATEGORIES.items() for phase in phases}


@dataclass(frozen=True)
class TimeSpent:
    """Seconds by category, all of CATEGORIES."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0.0))
    idle: float = 0.0  # seconds in which the run was neither queued nor running; in no category

    @property
    def total(self) -> float:
        """Seconds in the queue and on the nodes."""
        return sum(self.seconds.values())

    @property
    def on_nodes(self) -> float:
        """Seconds for which nodes were allocated."""
        return self.total - self.seconds["queue"]

    @property
    def goodput(self) -> float | None:
        """The share of the time on the nodes that went into steps that count; None before the first one."""
        return self.seconds["step"] / self.on_nodes if self.seconds["step"] and self.on_nodes > 0 else None

    def share(self, category: str) -> float:
        """The share of a category in the time on the nodes."""
        return self.seconds[category] / self.on_nodes if self.on_nodes > 0 else 0.0

    def describe(self) -> str:
        """`goodput 93.1%: 2:01:04 of 2:10:00 on the nodes went into steps that count; compile 3:10, lost 1:02`."""
        if self.goodput is None:
            return f"no step yet, after {format_duration(self.on_nodes)} on the nodes"
        others = sorted((c for c in CATEGORIES if c not in ("step", "queue")), key=lambda c: -self.seconds[c])
        shown = [f"{name} {format_duration(self.seconds[name])}" for name in others if self.share(name) >= 0.01]
        queue = f"; {format_duration(self.seconds['queue'])} in the queue" if self.seconds["queue"] >= 1 else ""
        good, whole = format_duration(self.seconds["step"]), format_duration(self.on_nodes)
        line = f"goodput {self.goodput:.1%}: {good} of {whole} on the nodes went into steps that count"
        return line + (f"; {', '.join(shown)}" if shown else "") + queue


def time_spent(attempts: Sequence[Attempt]) -> TimeSpent:
    """Adds up the attempts of a run.  One that runs counts until its newest record."""
    total = dict.fromkeys(CATEGORIES, 0.0)
    for attempt in attempts:
        for category, seconds in attempt_seconds(attempt).items():
            total[category] += seconds
    return TimeSpent(total, idle=sum(attempt.idle for attempt in attempts))


def attempt_seconds(attempt: Attempt) -> dict[str, float]:
    """Seconds of one attempt by category; without the queue they add up to its duration."""
    out = dict.fromkeys(CATEGORIES, 0.0)
    out["queue"] = attempt.queued
    for phase, seconds in attempt.seconds.items():
        lost = min(seconds, attempt.lost.get(phase, 0.0))
        out[_CATEGORY.get(phase, "other")] += seconds - lost
        out["lost"] += lost
    unrecorded = attempt.duration - sum(attempt.seconds.values())
    if attempt.started is None:
        out["start"] += unrecorded
    else:  # before its first process, and after its last record
        before = min(unrecorded, max(0.0, attempt.started - attempt.began - attempt.at_start))
        out["start"] += before
        lost = attempt.lost_steps and attempt.ending in ("failed", "killed")
        out["lost" if lost else "other"] += unrecorded - before
    return out
