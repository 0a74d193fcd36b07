"""Pictures beside a page: where the time of a run went, attempt by attempt, and its confusion matrix."""

from pathlib import Path
from typing import Any

from jobs.page.confusion import FEW_CLASSES, shade
from jobs.page.evaluation import class_name
from jobs.page.figures import THEMES, plain, styled
from jobs.page.learning_curves import unit_of
from jobs.page.run_data import RunData
from jobs.page.scales import duration, percent
from jobs.page.timeline import NAMES, PARTS
from vit.history.time_spent import CATEGORIES, attempt_seconds
from vit.run.counts import counted
from vit.run.evaluation_file import Evaluation

COLORS = {"queue": "#d5d8dd", "start": "#9aa5b4", "compile": "#aa3377", "data": "#ddaa33", "step": "#4477aa"}
COLORS |= {"checkpoint": "#66ccee", "evaluate": "#228833", "lost": "#cc6677", "other": "#b9a98f", "train": "#4477aa"}
LONGEST_WHY = 60  # characters
MOST_ATTEMPTS = 60  # with more, a picture has no room for a row for each


def draw_time(run: RunData, out: Path, theme: str = "light") -> None:
    """The attempts as a Gantt chart, and below it all time as one bar."""
    first = run.attempts[0]
    zero = first.began - first.queued
    name, unit = unit_of(max(a.began + a.duration for a in run.attempts) - zero)
    colors, rows = THEMES[theme], len(run.attempts)
    strip = rows > MOST_ATTEMPTS  # all in one row
    size, heights = (10, 2.8 if strip else 1.9 + 0.2 * rows), (2 if strip else rows + 1, 2)
    with styled(theme) as pyplot:
        figure, (gantt, bar) = pyplot.subplots(2, 1, figsize=size, height_ratios=heights, layout="constrained")
        spans: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for attempt in run.attempts:
            at, seconds = attempt.began - attempt.queued - zero, attempt_seconds(attempt)
            row = 0 if strip else attempt.number
            for part, names in PARTS.items():
                length = sum(seconds[category] for category in names)
                spans.setdefault((row, part), []).append((at / unit, length / unit))
                at += length
            if not strip:
                why = plain(attempt.why or attempt.ending)
                text = f"  {why if len(why) <= LONGEST_WHY else why[: LONGEST_WHY - 1] + '…'}"
                gantt.text(at / unit, attempt.number, text, va="center", fontsize=7.5, color=colors["soft"])
        for (row, part), found in spans.items():
            gantt.broken_barh(found, (row - 0.35, 0.7), facecolors=COLORS[part], linewidth=0)
        gantt.invert_yaxis()
        gantt.margins(x=0, y=0.01)
        gantt.set_xlim(left=0)
        gantt.set_xlabel(name, loc="right", color=colors["soft"])
        gantt.set_title(f"{plain(run.name)}: {counted(rows, 'attempt')}", loc="left", fontsize=9, color=colors["soft"])
        gantt.set_yticks([] if strip else [attempt.number for attempt in run.attempts])
        _draw_bar(bar, run)
        for axes in (gantt, bar):
            axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
            axes.tick_params(length=0, colors=colors["soft"])
        goodput = f"goodput {percent(run.time.goodput)}" if run.time.goodput is not None else "no step yet"
        bar.set_title(f"time on the nodes and in the queue: {goodput}", loc="left", fontsize=9, color=colors["soft"])
        bar.legend(frameon=False, ncols=5, loc="upper left", bbox_to_anchor=(0, -0.05), labelcolor=colors["soft"])
        _save(figure, out)


def _draw_bar(axes: Any, run: RunData) -> None:
    left = 0.0
    for category in CATEGORIES:
        seconds = run.time.seconds[category]
        if seconds > 0:
            label = f"{NAMES[category]} {duration(seconds)}"
            axes.barh(0, seconds, left=left, color=COLORS[category], label=label)
            left += seconds
    axes.set_axis_off()
    axes.set_xlim(0, left or 1)


def draw_confusion(found: Evaluation, out: Path, theme: str = "light") -> None:
    """The share of each true class (row) that was taken for each class (column)."""
    totals, colors = found.images_per_class, THEMES[theme]
    shares = [[n / (totals[i] or 1) for n in row] for i, row in enumerate(found.matrix())]
    few = len(shares) <= FEW_CLASSES
    with styled(theme) as pyplot:
        figure, axes = pyplot.subplots(figsize=(6.4, 6), layout="constrained")
        shades = [[shade(share) for share in row] for row in shares]
        axes.imshow(shades, cmap="Blues" if theme == "light" else "cividis", vmin=0, vmax=1, interpolation="nearest")
        if few:
            names = [plain(class_name(found, i)) for i in range(len(shares))]
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
            axes.set_yticks(range(len(names)), names)
            for i, row in enumerate(shares):
                for j, share in enumerate(row):
                    if share >= 0.01:
                        color = "white" if share > 0.4 or theme == "dark" else "#1c2024"
                        axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xlabel("predicted class", color=colors["soft"])
        axes.set_ylabel("true class", color=colors["soft"])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, colors=colors["soft"])
        axes.set_title(f"{percent(found.top1, 2)} top-1, percent of each row", loc="left", fontsize=9)
        _save(figure, out)


def _save(figure: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
