"""One run alone: its state, its attempts, where the time went, its learning curve, notes, and the end of its log."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jobs.watch.colors import BOLD, DIM, GREEN, RED, YELLOW, paint, paint_state, plain
from jobs.watch.drawing import life, sparkline, time_bar
from jobs.watch.estimate_outcome import outcome
from jobs.watch.run_status import Status
from jobs.watch.table import state
from jobs.watch.words import NONE, clock, duration, gigabytes, pad, printable, shorten
from vit.history.attempts import Attempt
from vit.history.learning_curve import number, top1
from vit.history.notes import notes
from vit.history.run_history import RunHistory
from vit.run.counts import counted
from vit.run.folder import RunFolder

ATTEMPTS, MIN_ATTEMPTS = 12, 2  # shown one by one, the newest; on a low screen
ENDINGS = {"running": GREEN, "finished": GREEN, "stopped": YELLOW, "failed": RED, "killed": RED}
LOG_LINES, LOG_BYTES = 6, 1 << 13
MIN_AXIS, MAX_AXIS, MIN_WHY = 16, 40, 28  # columns of the time axis of the attempts, and of why they ended


def run_page(row: Status, history: RunHistory, columns: int, rows: int | None = None) -> list[str]:
    """The lines of the page, each at most this wide, of a run with this status and history.

    If there are more of them than `rows`, fewer attempts are shown one by one.
    """
    lines = _page(row, history, columns, ATTEMPTS)
    if rows is not None and len(lines) > rows:
        fewer = min(len(row.attempts), ATTEMPTS) - (len(lines) - rows) - 1  # one line counts the earlier ones
        lines = _page(row, history, columns, max(MIN_ATTEMPTS, fewer))
    return lines


def _page(row: Status, history: RunHistory, columns: int, attempts: int) -> list[str]:
    lines = _head(row, columns)
    sections = {
        "candidates": _candidates(row, columns),
        "attempts": _attempts(row, columns, attempts),
        "time": _time(row, columns),
        "estimate": _estimate(history, columns),
        "learning curve": _curve(history, columns),
        "notes": [line for note in notes(history) for line in _wrapped(note, columns)],
    }
    name, log = _log(RunFolder(Path(row.folder)), row)
    sections[name] = [shorten(f"  {line}", columns) for line in log]
    for title, content in sections.items():
        lines += ["", paint(title, BOLD), *content] if content else []
    return lines


def _head(row: Status, columns: int) -> list[str]:
    problems = [*filter(None, [row.why]), *row.slow_ranks, *row.problems, *row.damaged, *row.changed]
    job = f", job {row.job}" if row.job else ""
    title = f"{printable(row.folder)}: "
    lines = [paint(title, BOLD) + paint_state(state(row) + job, row.state)]
    lines += [f"  {line}" for problem in problems for line in _wrapped_words(printable(problem), columns - 2)]
    progress = []
    if row.step is not None and row.steps:
        progress.append(f"step {row.step:,} of {row.steps:,} ({row.step / row.steps:.1%})")
    if row.epoch is not None and row.epochs:
        progress.append(f"epoch {row.epoch:.2f} of {row.epochs:g}")
    if row.waiting is not None:
        progress.append(f"waiting for {duration(row.waiting)}")
    if row.seconds_left is not None:
        progress.append(f"{duration(row.seconds_left)} left, until {clock(row.ends)}")
    learned = [f"loss {row.loss:.4f}"] if row.loss is not None else []
    if row.top1 is not None:
        higher = row.best_top1 is not None and row.best_top1 > row.top1
        best = f" (best {row.best_top1:.2%} at epoch {row.best_epoch or 0:.1f})" if higher else ""
        learned.append(f"top-1 {row.top1:.2%}{best}")
    speed = [] if row.images_per_second is None else [f"{row.images_per_second:,.0f} images/s"]
    speed += [counted(row.ranks, "rank")] if row.ranks else []
    speed += [printable(row.device)] if row.device not in ("", "cpu") else []
    speed += [f"MFU {row.mfu:.1%}"] if row.mfu is not None else []
    speed += [f"GPU {row.gpu:.0%} busy"] if row.gpu is not None else []
    if row.gpu_memory is not None:
        speed.append(f"memory peak {gigabytes(row.gpu_memory)} of {gigabytes(row.gpu_memory_total)}")
    saved = []
    if row.checkpoint is not None:
        age = f", {duration(row.checkpoint_age)} ago" if row.checkpoint_age is not None else ""
        saved.append(f"newest checkpoint: step {row.checkpoint:,}{age}")
    if row.seconds_since_sign is not None:
        saved.append(f"last update {duration(row.seconds_since_sign)} ago")
    groups = [", ".join(group) for group in (progress, learned, speed, saved) if group]
    return lines + [f"  {line}" for group in groups for line in _wrapped_words(group, columns - 2)]


def _candidates(row: Status, columns: int) -> list[str]:
    """A table of the jobs of a run that was submitted in several sizes."""
    if not row.candidates:
        return []
    table = [("job", "size", "state", "where or why", "may start")]
    for each in row.candidates:
        trains = ", trains" if each.owns and each.is_running else ""
        may_start = each.eligible.replace("T", " ") or NONE
        table.append((each.job, each.size, each.state + trains, each.reason or NONE, may_start))
    kept = [i for i in range(len(table[0])) if any(line[i] != NONE for line in table[1:])]
    widths = [max(len(printable(line[i])) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(pad(printable(line[i]), widths[i], left=True) for i in kept).rstrip() for line in table]
    return [paint(shorten(f"  {lines[0]}", columns), DIM), *(shorten(f"  {line}", columns) for line in lines[1:])]


def _attempts(row: Status, columns: int, newest: int) -> list[str]:
    """A table with one line for each attempt, the newest ones, and its place on the time axis."""
    shown = row.attempts[-newest:]
    if not shown:
        return []
    table: list[tuple[str, ...]] = [("", "began", "queue", "ran", "steps", "repeated", "node", "ranks", "ended")]
    table += [_cells(attempt, row) for attempt in shown]
    why, ranks = len(table[0]) - 1, table[0].index("ranks")
    several = len({attempt.ranks for attempt in row.attempts} - {None}) > 1
    kept = [i for i in range(why) if (i != ranks or several) and any(line[i] != NONE for line in table[1:])]
    widths = [max(len(line[i]) for line in table) for i in range(why + 1)]
    for name in ("ranks", "queue", "repeated", "node", "steps"):  # if there is too little room
        if columns - 2 - sum(widths[i] + 2 for i in kept) < min(MIN_WHY, widths[why]):
            kept = [i for i in kept if table[0][i] != name]
    room = columns - 2 - sum(widths[i] + 2 for i in kept)
    axis = max(MIN_AXIS, min(MAX_AXIS, room - widths[why] - 2))
    axis = axis if len(shown) > 1 and room - axis - 2 >= MIN_WHY else 0
    start = shown[0].began - shown[0].queued
    end = max(attempt.began + attempt.duration for attempt in shown)
    lines = []
    for i, line in enumerate(table):
        text = "".join(pad(line[j], widths[j], left=table[0][j] == "node") + "  " for j in kept)
        bar = life(shown[i - 1], start, end, axis) if i and axis else ""
        drawn = f"{_pad_painted(bar, axis)}  " if axis else ""
        cause = shorten(line[why], max(10, room - (axis + 2 if axis else 0)))
        if not i:
            lines.append(paint(f"  {text}{drawn}{cause}", DIM))
        else:
            lines.append(f"  {text}{drawn}{paint(cause, ENDINGS[shown[i - 1].ending])}".rstrip())
    earlier = row.attempts[:-newest]
    if earlier:
        causes = Counter(_cause(attempt) for attempt in earlier).most_common()
        text = f"{counted(len(earlier), 'earlier attempt')}: {', '.join(f'{n} {cause}' for cause, n in causes)}"
        lines.insert(1, shorten(f"  {text}", columns))
    return lines


def _pad_painted(text: str, columns: int) -> str:
    return text + " " * (columns - len(plain(text)))


def _cause(attempt: Attempt) -> str:
    """Why it ended, without what is particular to this attempt."""
    return "failed" if attempt.ending == "failed" else printable(attempt.why)


def _cells(attempt: Attempt, row: Status) -> tuple[str, ...]:
    first, last = attempt.first_step, attempt.last_step
    steps = NONE if first is None or last is None else f"{first:,} → {last:,}"
    why = printable(attempt.why)
    if attempt.ending == "running":
        why = "running" if row.state == "running" else row.state
    short = row.time_spent.total + row.time_spent.idle < 7200
    return (
        str(attempt.number),
        clock(attempt.began, seconds=short),
        duration(attempt.queued) if attempt.queued >= 1 else NONE,
        duration(attempt.duration),
        steps,
        f"{attempt.lost_steps:,}" if attempt.lost_steps else NONE,
        printable(attempt.node) or NONE,
        NONE if attempt.ranks is None else str(attempt.ranks),
        why,
    )


def _time(row: Status, columns: int) -> list[str]:
    if row.time_spent.total < 1:
        return []
    good = row.time_spent.goodput
    began = row.attempts[0].began - row.attempts[0].queued
    idle = f", not submitted for {duration(row.time_spent.idle)}" if row.time_spent.idle >= 60 else ""
    said = "no step yet" if good is None else f"goodput {good:.1%}: the share of the time on the nodes spent on steps"
    lines = [f"{duration(row.time_spent.total)} since {clock(began)}{idle}; {said}"]
    return [f"  {line}" for text in lines for line in _wrapped_words(text, columns - 2)] + [
        f"  {line}" for line in time_bar(row.time_spent, columns - 2)
    ]


def _estimate(history: RunHistory, columns: int) -> list[str]:
    found = outcome(history.events, history.attempts, history.usage)
    if found is None:
        return []
    came = "came" if found.finished else "so far"
    lines = [
        f"{figure.name}: {figure.estimated} estimated, {figure.came} {came}"
        + (f" ({figure.ratio:.2f} times)" if figure.ratio is not None else "")
        for figure in found.figures
        if figure.ratio is not None
    ]
    lines += [found.difference] if found.difference else []
    lines += [f"estimate: speed {found.source}"] if found.source else []
    return [f"  {line}" for text in lines for line in _wrapped_words(printable(text), columns - 2)]


def _curve(history: RunHistory, columns: int) -> list[str]:
    rows = (
        ("loss", [number(r, "loss") for r in history.training], "{:.3f}"),
        ("top-1", [top1(r) for r in history.evaluations], "{:.1%}"),
        ("images/s", [number(r, "images_per_second") for r in history.training], "{:,.0f}"),
    )
    lines = []
    for name, found, form in rows:
        values = [value for value in found if value is not None]
        if len(values) > 1:
            first, last = form.format(values[0]), form.format(values[-1])
            ends = f"{first} → {last}  ({form.format(min(values))} to {form.format(max(values))})"
            line = sparkline(values, max(10, min(60, columns - 14 - 44)))
            lines.append(shorten(f"  {name:<8}  {line}  {ends}", columns))
    return lines


def _log(run: RunFolder, row: Status) -> tuple[str, Sequence[str]]:
    """The name of the log that says most, and its last lines: of the rank that failed, else of rank 0."""
    rank = 0
    for attempt in row.attempts[-1:]:
        if attempt.ending == "failed" and attempt.why.startswith("rank "):
            rank = int(attempt.why.split()[1].rstrip(":") or 0) if attempt.why.split()[1].rstrip(":").isdigit() else 0
    path = run.logs / f"rank-{rank}.log"
    try:
        lines = _last_lines(path)
    except FileNotFoundError:
        return path.name, []
    except OSError as error:
        return path.name, [str(error)]
    return f"logs/{path.name}", lines


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES))
        text = file.read().decode(errors="replace")
    lines = [printable(line.rpartition("\r")[2]).rstrip() for line in text.split("\n")]
    return [line for line in lines[size > LOG_BYTES :] if line][-LOG_LINES:]


def _wrapped(note: str, columns: int) -> list[str]:
    """A note as an item of a list."""
    return [("  - " if not i else "    ") + line for i, line in enumerate(_wrapped_words(note, columns - 4))]


def _wrapped_words(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, max(20, columns), break_long_words=False, break_on_hyphens=False) or [""]
