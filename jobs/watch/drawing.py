"""Drawings in text: sparklines, bars of shares, and attempts on a time axis."""

from collections.abc import Sequence

from jobs.watch.colors import paint
from jobs.watch.words import duration, pad, percent
from vit.history.attempts import Attempt
from vit.history.time_spent import TimeSpent, attempt_seconds

LEVELS = "▁▂▃▄▅▆▇█"

# How the categories of vit/history/time_spent.py are drawn: legible without colors too.
GLYPHS = {
    "queue": ("·", "2"),
    "start": ("░", "34"),
    "compile": ("▒", "35"),
    "data": ("▓", "33"),
    "step": ("█", "32"),
    "checkpoint": ("◆", "36"),
    "evaluate": ("▚", "34"),
    "lost": ("×", "31"),
    "other": ("─", "2"),
}
NAMES = {"data": "data wait", "step": "steps", "lost": "lost steps"}  # where the category's name does not suffice


def sparkline(values: Sequence[float], columns: int) -> str:
    """A line of at most this many characters, each the mean of equally many values; from the lowest to the highest."""
    count = min(columns, len(values))
    means = []
    for i in range(count):
        part = values[i * len(values) // count : (i + 1) * len(values) // count]
        means.append(sum(part) / len(part))
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((mean - low) * scale)] for mean in means)


def apportion(shares: Sequence[float], cells: int) -> list[int]:
    """Distributes cells in proportion to the shares: to the largest remainders, and none to a share of 0."""
    total = sum(shares)
    if total <= 0:
        return [0] * len(shares)
    exact = [share / total * cells for share in shares]
    out = [int(value) for value in exact]
    for i in sorted(range(len(exact)), key=lambda i: out[i] - exact[i])[: cells - sum(out)]:
        out[i] += 1
    return out


def time_bar(spent: TimeSpent, columns: int) -> list[str]:
    """Where the time went: a bar, and what its characters mean with each category's time and share."""
    names = [name for name in GLYPHS if spent.seconds[name] >= 0.5]
    cells = apportion([spent.seconds[name] for name in names], columns)
    if not names:
        return []
    bar = "".join(paint(GLYPHS[name][0] * n, GLYPHS[name][1]) for name, n in zip(names, cells, strict=True) if n)
    keys = [f"{NAMES.get(name, name)} {duration(spent.seconds[name])}" for name in names]
    shares = [percent(spent.seconds[name] / spent.total, 1) for name in names]
    wide = max(len(f"{key} {share}") for key, share in zip(keys, shares, strict=True)) + 2
    per_line = max(1, (columns + 2) // (wide + 4))
    legend = [
        f"{paint(*GLYPHS[name])} {pad(key, wide - 2 - len(share))}  {share}"
        for name, key, share in zip(names, keys, shares, strict=True)
    ]
    return [bar, *("  ".join(legend[i : i + per_line]) for i in range(0, len(legend), per_line))]


def life(attempt: Attempt, start: float, end: float, columns: int) -> str:
    """An attempt on an axis from `start` to `end`: when it waited in the queue and when it ran, at least one character.

    The part of its steps that was repeated is marked.
    """
    scale = columns / max(1e-9, end - start)
    first = min(columns - 1, max(0, int((attempt.began - start) * scale)))
    waited = min(columns, max(0, int((attempt.began - attempt.queued - start) * scale)))
    last = min(columns, max(first + 1, round((attempt.began + attempt.duration - start) * scale)))
    lost = round(attempt_seconds(attempt)["lost"] * scale)
    lost = min(last - first - 1, lost) if attempt.ending in ("failed", "killed") else 0
    queue, step, repeated = GLYPHS["queue"], GLYPHS["step"], GLYPHS["lost"]
    return (
        " " * min(waited, first)
        + paint(queue[0] * max(0, first - waited), queue[1])
        + paint(step[0] * (last - first - lost), step[1])
        + paint(repeated[0] * lost, repeated[1])
    )
