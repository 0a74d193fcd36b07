"""The attempts of a run as a Gantt chart, and where its time went as a bar."""

import itertools

from jobs.page.curves import finite
from jobs.page.elements import Html, element
from jobs.page.learning_curves import unit_of
from jobs.page.run_data import RunData, shown
from jobs.page.scales import Scale, duration, percent, tick_label
from vit.history.attempts import Attempt
from vit.history.time_spent import CATEGORIES, attempt_seconds
from vit.run.counts import counted

NAMES = {
    "queue": "queue",
    "start": "start",
    "compile": "compile",
    "data": "data wait",
    "step": "training steps",
    "checkpoint": "checkpoints",
    "evaluate": "evaluation",
    "lost": "lost",
    "other": "other",
}
# The parts of an attempt in the Gantt chart, in their order in time; those between start and lost alternate in fact.
PARTS = {
    "queue": ("queue",),
    "start": ("start",),
    "compile": ("compile",),
    "train": ("data", "step", "checkpoint", "evaluate", "other"),
    "lost": ("lost",),
}
MANY_ATTEMPTS = 30  # of more, one bar shows all, and the rows are scrolled
ENDINGS = {"finished": "✓ ", "stopped": "■ ", "failed": "✕ ", "killed": "✕ "}


def attempts_section(run: RunData) -> Html | None:
    """The Gantt chart with a line of words for each attempt."""
    if not run.attempts:
        return None
    first = run.attempts[0]
    zero = first.began - first.queued
    whole = max(a.began + a.duration for a in run.attempts) - zero
    name, unit = unit_of(whole)
    scale = Scale(0.0, whole / unit or 1.0)
    rows = [_row(attempt, zero, unit, scale) for attempt in run.attempts]
    many = len(rows) > MANY_ATTEMPTS
    everything = [bar for attempt in run.attempts for bar in _bars(attempt, zero, unit, scale)]
    ticks = scale.ticks(6)
    axis = [
        element("span", tick_label(t, ticks), style=f"left:{100 * scale(t):.2f}%", class_="odd" if i % 2 else None)
        for i, t in enumerate(ticks)
        if scale(t) <= 1.001
    ]
    used = {
        part for a in run.attempts for part, names in PARTS.items() if sum(attempt_seconds(a)[n] for n in names) > 0
    }
    keys = [element("span", element("i", class_=f"swatch t-{part}"), part) for part in PARTS if part in used]
    changes = changes_between(run)
    return element(
        "section",
        element("h2", "Attempts"),
        element("div", *keys, class_="legend plain"),
        element(
            "div",
            element("div", *everything, class_="bars whole") if many else None,
            None if many else element("div", *rows, class_="rows"),
            element(
                "div",
                element("div", *axis, class_="x-labels"),
                element("div", name, class_="x-title"),
                class_="gantt-axis",
            ),
            element("div", *rows, class_="rows") if many else None,
            class_=f"gantt{' long' if many else ''}",
        ),
        element("p", "Changed between attempts: ", "; ".join(changes), ".", class_="note") if changes else None,
        id="attempts",
    )


def _bars(attempt: Attempt, zero: float, unit: float, scale: Scale) -> list[Html]:
    seconds = attempt_seconds(attempt)
    at = attempt.began - attempt.queued
    bars = []
    for part, names in PARTS.items():
        length = sum(seconds[name] for name in names)
        if length <= 0:
            continue
        left, width = 100 * scale((at - zero) / unit), 100 * length / unit / (scale.high or 1)
        text = f"{part}: {duration(length)}"
        bars.append(element("i", class_=f"t-{part}", style=f"left:{left:.3f}%;width:{width:.3f}%", title=text))
        at += length
    return bars


def _row(attempt: Attempt, zero: float, unit: float, scale: Scale) -> Html:
    lost = f" · {counted(attempt.lost_steps, 'step')} repeated later" if attempt.lost_steps else ""
    steps = (
        f"steps {attempt.first_step:,}–{attempt.last_step:,}"
        if attempt.first_step is not None and attempt.last_step is not None
        else "no step"
    )
    node = f" · {attempt.node}" if attempt.node else ""
    why = attempt.why or ("running" if attempt.ending == "running" else attempt.ending)
    return element(
        "div",
        element("span", attempt.number, class_="number"),
        element("div", *_bars(attempt, zero, unit, scale), class_="bars"),
        element(
            "div",
            element("b", ENDINGS.get(attempt.ending, ""), why, class_=f"why {attempt.ending}", title=why),
            element("span", f"{steps}{lost} · {duration(attempt.duration)}{node}", class_="what"),
        ),
        class_="row",
    )


def changes_between(run: RunData) -> list[str]:
    """What differs from one attempt to the next: ranks and device; settings that `--override-resume` changed."""
    out = []
    started = [attempt for attempt in run.attempts if attempt.started is not None]
    for before, after in itertools.pairwise(started):
        changes = []
        if before.ranks != after.ranks and before.ranks and after.ranks:
            changes.append(f"{before.ranks} → {counted(after.ranks, 'rank')}")
        if before.device != after.device and before.device and after.device:
            changes.append(f"{before.device} → {after.device}")
        if changes:
            out.append(f"attempt {after.number}: {', '.join(changes)}")
    for event in run.events:
        settings, step = event.get("settings"), finite(event.get("step"))
        if event["event"] == "settings changed" and isinstance(settings, dict) and step is not None:
            pairs = [(name, pair) for name, pair in settings.items() if isinstance(pair, list) and len(pair) == 2]
            words = [f"{name} {shown(before)} → {shown(now)}" for name, (before, now) in pairs]
            text = f"step {step:,.0f}: {', '.join(words)}"
            out += [text] if words and text not in out else []
    return out


def time_section(run: RunData) -> Html | None:
    """The stacked bar of the time, its parts in words, and the goodput."""
    spent = run.time
    if spent.total <= 0:
        return None
    shown = [name for name in CATEGORIES if spent.seconds[name] > 0]
    bars, rows = [], []
    for name in shown:
        seconds = spent.seconds[name]
        share = seconds / spent.total
        label = NAMES[name] if share > 0.12 else None
        text = f"{NAMES[name]}: {duration(seconds)}, {percent(share)}"
        bars.append(element("span", label, class_=f"t-{name}", style=f"flex-grow:{seconds:.3f}", title=text))
        rows.append(
            element(
                "tr",
                element("td", element("i", class_=f"swatch t-{name}"), NAMES[name]),
                element("td", duration(seconds)),
                element("td", percent(share)),
            )
        )
    lost = sum(attempt.lost_steps for attempt in run.attempts)
    words = [
        f"Goodput {percent(spent.goodput)}: {duration(spent.seconds['step'])} of "
        f"{duration(spent.on_nodes)} on the nodes went into training steps that count."
        if spent.goodput is not None
        else f"No step yet, after {duration(spent.on_nodes)} on the nodes.",
        f" {counted(lost, 'step')} {'was' if lost == 1 else 'were'} repeated." if lost else None,
        f" Not counted: {duration(spent.idle)} in which the run was neither queued nor running."
        if spent.idle >= 1
        else None,
    ]
    return element(
        "section",
        element("h2", "Where the time went"),
        element("p", *words, class_="lead"),
        element("div", *bars, class_="stack", role="img", aria_label="time by category; the table has the numbers"),
        element("table", element("tbody", *rows), class_="numbers narrow"),
        id="time",
    )
