"""What was estimated when a run was submitted, and what came: speed, time on the nodes, GPU-hours, queue."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit.history.attempts import Attempt
from vit.history.learning_curve import integer, number
from vit.history.resources import Usage, mean_usage
from vit.history.time_spent import time_spent
from vit.run.counts import counted
from vit.run.folder import Event
from vit.run.progress import format_duration

# Categories of an estimate, and those of the time that was spent (vit/history/time_spent.py) that belong to it.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "step": ("step", "data"),
    "evaluate": ("evaluate",),
    "checkpoint": ("checkpoint",),
    "compile": ("compile",),
    "start": ("start",),
    "lost": ("lost",),
    "other": ("other",),
}
NAMES = {"step": "steps", "evaluate": "evaluation", "checkpoint": "checkpoints", "start": "starts"}
ONCE = ("start", "compile")  # not in proportion to the steps
SHARE = 0.1  # of the difference: smaller parts of it are not named
BUSY = 0.7  # of a core: a rank on a CPU that computes all the time has more
EVEN = 0.02  # a ratio that is so near to 1 needs no explanation


@dataclass(frozen=True)
class Figure:
    """One figure, estimated and as it came."""

    name: str
    estimated: str
    came: str
    ratio: float | None = None  # what came over what was estimated


@dataclass(frozen=True)
class Outcome:
    """All of them."""

    figures: tuple[Figure, ...]
    difference: str  # what the difference of the time went to, in words; "" if there is hardly any
    source: str  # what it was estimated from
    finished: bool


def outcome(events: Sequence[Event], attempts: Sequence[Attempt], usage: Sequence[Usage] = ()) -> Outcome | None:
    """Compares the estimate with the attempts since; None without an estimate, or before the first step.

    If the same command was repeated, it is the first estimate of this length and size.  `usage` of the nodes tells
    whether ranks on CPUs had to share their cores.
    """
    estimate = _estimate(events)
    if estimate is None:
        return None
    since = [a for a in attempts if a.began >= (number(estimate, "time") or 0.0)]
    estimate = _of_size(estimate, since)
    first, last = integer(estimate, "step") or 0, integer(estimate, "steps")
    reached = max((a.last_step for a in since if a.last_step is not None), default=first)
    expected = _numbers(estimate.get("seconds"))
    images, rate = number(estimate, "images"), number(estimate, "images_per_second")
    if not last or last <= first or reached <= first or not images or not rate or not expected:
        return None
    share = min(1.0, (reached - first) / (last - first))
    expected = {name: value * (1.0 if name in ONCE else share) for name, value in expected.items()}
    spent = time_spent(since)
    came = {name: sum(spent.seconds[part] for part in parts) for name, parts in CATEGORIES.items()}
    wall, training = sum(expected.values()), came["step"]
    if not wall or not training:
        return None
    ranks = _ranks(estimate)
    hours = sum(a.duration * (a.ranks or ranks) for a in since) / 3600
    speed = images * share / training
    device = "rank-hours" if estimate.get("device") == "cpu" else "GPU-hours"
    figures = (
        Figure("images/s", _amount(rate), _amount(speed), speed / rate),
        Figure("time on the nodes", format_duration(wall), format_duration(spent.on_nodes), spent.on_nodes / wall),
        Figure(device, _amount(wall * ranks / 3600), _amount(hours), hours / (wall * ranks / 3600)),
        *([Figure("queue", "–", format_duration(spent.seconds["queue"]))] if spent.seconds["queue"] >= 1 else []),
    )
    cores = _cores(usage, since) if estimate.get("device") == "cpu" else None
    words = _difference(expected, came, spent.seconds["data"], since, ranks, cores)
    return Outcome(figures, words, str(estimate.get("source", "")), share == 1.0)


def _estimate(events: Sequence[Event]) -> Event | None:
    """The first of the newest estimates that have the same number of steps and the same size."""
    found: Event | None = None
    for event in reversed([event for event in events if event["event"] == "estimated"]):
        if found is not None and any(event.get(name) != found.get(name) for name in ("steps", "nodes", "gpus")):
            break
        found = event
    return found


def _of_size(estimate: Event, attempts: Sequence[Attempt]) -> Event:
    """Of a run that was submitted in several sizes, the estimate for the one on which it ran longest."""
    seconds = dict[int, float]()
    for attempt in attempts:
        seconds[attempt.ranks or 0] = seconds.get(attempt.ranks or 0, 0.0) + attempt.duration
    longest = max(seconds, key=lambda ranks: seconds[ranks], default=0)
    sizes = estimate.get("sizes")
    sizes = [size for size in sizes if isinstance(size, dict)] if isinstance(sizes, list) else []
    return next((estimate | size for size in sizes if _ranks(size) == longest), estimate)


def _ranks(estimate: Event) -> int:
    return (integer(estimate, "nodes") or 1) * (integer(estimate, "gpus") or 1)


def _difference(
    expected: Mapping[str, float],
    came: Mapping[str, float],
    data: float,
    attempts: Sequence[Attempt],
    ranks: int,
    cores: float | None,
) -> str:
    """`3:10 longer: steps 2:40 (waiting for images 50 s), lost in 1 interruption 30 s`."""
    changes = {name: came.get(name, 0.0) - expected.get(name, 0.0) for name in CATEGORIES}
    total = sum(changes.values())
    if abs(total) < EVEN * sum(expected.values()) or abs(total) < 1:
        return ""
    ended = [attempt for attempt in attempts[:-1] if attempt.ending != "finished"]
    widths = {attempt.ranks for attempt in attempts if attempt.ranks} - {ranks}
    words = list(_words(changes, total, data, len(ended), len(attempts)))
    if cores is not None and cores < BUSY and changes["step"] > 0:
        words.append(f"each rank had {cores:.0%} of a core: others used this machine too")
    if widths:
        words.append(f"part of it ran on {', '.join(map(str, sorted(widths)))} instead of {counted(ranks, 'rank')}")
    return f"{format_duration(abs(total))} {'longer' if total > 0 else 'shorter'}: {', '.join(words)}"


def _cores(usage: Sequence[Usage], attempts: Sequence[Attempt]) -> float | None:
    """The cores that each rank used, on average; None if that was not recorded."""
    began, ranks = min(a.began for a in attempts), attempts[-1].ranks
    found = mean_usage([each for each in usage if each.began >= began])
    return found.cpu * found.cores / ranks if found and found.cpu is not None and found.cores and ranks else None


def _words(changes: Mapping[str, float], total: float, data: float, interruptions: int, starts: int) -> Iterator[str]:
    """The parts of a difference that count, the largest first; others that make up for them too."""
    for name, change in sorted(changes.items(), key=lambda pair: -abs(pair[1])):
        if abs(change) < max(SHARE * abs(total), 0.5):
            continue
        text = f"{NAMES.get(name, name)} {format_duration(abs(change))}"
        if (change > 0) != (total > 0):
            text += " more" if change > 0 else " less"
        if name == "step" and change > 0 and data > SHARE * change:
            text += f" ({format_duration(data)} of the steps' time waiting for images)"
        if name == "lost":
            text += f" in {counted(interruptions, 'interruption')}" if interruptions else ""
        if name == "start" and starts > 1:
            text += f" for {starts} of them"
        yield text


def _numbers(values: Any) -> dict[str, float]:
    """The numbers of a dictionary; empty if it is none."""
    if not isinstance(values, dict):
        return {}
    return {name: value for name in values if (value := number(values, name)) is not None and value >= 0}


def _amount(value: float) -> str:
    return f"{value:,.{0 if value >= 99.5 else 1 if value >= 0.95 else 2}f}"
