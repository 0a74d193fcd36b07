"""Pictures of learning curves for papers and READMEs, with Matplotlib, which is imported late: it takes a second."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.page.comparison import sameness
from jobs.page.interruptions import Interruption, interruptions
from jobs.page.run_data import RunData
from jobs.page.scales import scale_for
from jobs.page.thinning import thin
from vit.config.user_error import UserError
from vit.run.counts import counted
from vit.run.figures import import_matplotlib

# Paul Tol's bright scheme, which is safe for color-blind readers, and lighter colors for dark backgrounds: one for each
# run; of a single run, the first is its loss, the second its accuracy, the fourth that of the EMA.
RUN_COLORS = {
    "light": ("#4477aa", "#cc6677", "#228833", "#c79100", "#33a0c8", "#aa3377"),
    "dark": ("#7fb0e0", "#e88c9b", "#5cbf6c", "#e5bc4f", "#7fd4f0", "#d678ae"),
}
LOSS, TOP1, EMA = 0, 1, 3
MARKS = {"stop": ("v", "#8b8d98"), "failure": ("X", "#cc4455"), "rollback": ("D", "#aa3377")}
NAMES = {"stop": "stopped and saved", "failure": "killed or failed", "rollback": "rolled back"}
THEMES = {
    "light": {"text": "#1c2024", "soft": "#60646c", "grid": "#eeeff1", "background": "#ffffff"},
    "dark": {"text": "#eceef0", "soft": "#a8adb5", "grid": "#24282c", "background": "#0d1117"},
}


def draw(
    runs: Sequence[RunData], out: Path, over: RunData | None = None, theme: str = "light", title: str = ""
) -> None:
    """Training loss and accuracy over epochs, with a mark wherever a run was interrupted.

    The default title is the names of the runs.  `over` is drawn as a wide pale line below the others.  Raises UserError
    if a run has no learning curve.
    """
    for run in [*runs, *([over] if over is not None else [])]:
        if "loss" not in run.curves:
            unreadable = [problem for problem in run.problems if "metrics.jsonl" in problem]
            missing = f"{run.folder} has no learning curve yet: metrics.jsonl is missing or empty"
            raise UserError("\n".join(unreadable) or missing)
    colors = THEMES[theme]
    with styled(theme) as pyplot:
        figure, (loss, accuracy) = pyplot.subplots(1, 2, figsize=(10, 3.9), width_ratios=(1.5, 1), layout="constrained")
        _prepare(loss, "training loss", colors)
        _prepare(accuracy, "test top-1", colors)
        accuracy.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        if over is not None:
            _draw_below(over, loss, accuracy, colors)
        for i, run in enumerate(runs):
            several = len(runs) > 1 or over is not None
            _draw_run(run, loss, accuracy, i if several else None, RUN_COLORS[theme])
        _limits(loss, accuracy, [*runs, *([over] if over is not None else [])])
        marks = [mark for run in runs for mark in interruptions(run)]
        for axes in (loss, accuracy):
            _draw_marks(axes, marks)
        _words(figure, (loss, accuracy), runs, over, marks, colors, title)
        out.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if out.suffix == ".svg" else None
        figure.savefig(out, dpi=160, metadata=metadata)


def plain(text: str) -> str:
    """Text that a font can draw, and that Matplotlib does not hide from a legend."""
    shown = "".join(c if c.isprintable() else " " for c in text.encode(errors="replace").decode())
    return f" {shown}" if shown.startswith("_") else shown


@contextmanager
def styled(theme: str) -> Iterator[Any]:
    """Matplotlib's pyplot, with the fonts and colors of all pictures; figures that are made in it are closed."""
    matplotlib = import_matplotlib()
    from matplotlib import pyplot  # after the backend is chosen

    colors = THEMES[theme]
    style = {"font.size": 9, "text.color": colors["text"], "figure.facecolor": colors["background"]}
    style |= {"axes.facecolor": colors["background"], "savefig.facecolor": colors["background"], "svg.hashsalt": "vit"}
    style |= {"text.parse_math": False}  # names may contain dollar signs
    before = pyplot.get_fignums()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # characters that the font does not have
        yield pyplot
    for number in set(pyplot.get_fignums()) - set(before):
        pyplot.close(number)


def _prepare(axes: Any, title: str, colors: dict[str, str]) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=colors["soft"], pad=16)
    axes.set_xlabel("epoch", loc="right", color=colors["soft"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(colors["grid"])
    axes.tick_params(length=0, colors=colors["soft"])
    axes.grid(axis="y", color=colors["grid"], linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_below(run: RunData, loss: Any, accuracy: Any, colors: dict[str, str]) -> None:
    wide = {"color": colors["soft"], "alpha": 0.4, "linewidth": 6, "solid_capstyle": "round", "label": plain(run.name)}
    loss.plot(run.curves["loss"].epochs, run.curves["loss"].values, **wide)
    name = "val_top1_average" if "val_top1_average" in run.curves else "val_top1"
    if name in run.curves:
        accuracy.plot(run.curves[name].epochs, run.curves[name].values, **wide)


def _draw_run(run: RunData, loss: Any, accuracy: Any, number: int | None, palette: Sequence[str]) -> None:
    """In its own color of the palette, by its number, if there are several runs."""
    curve = run.curves["loss"]
    curve = curve.pick(thin(curve.epochs, curve.values, 1000))
    color = None if number is None else palette[number % len(palette)]
    loss.plot(curve.epochs, curve.values, color=color or palette[LOSS], linewidth=1.1, label=plain(run.name))
    names = [name for name in ("val_top1", "val_top1_average") if name in run.curves]
    for name in names[-1:] if color else names:
        curve, mine = run.curves[name], color or palette[TOP1 if name == "val_top1" else EMA]
        label = plain(run.name) if color else "EMA" if name.endswith("average") else "weights"
        accuracy.plot(curve.epochs, curve.values, marker="o", markersize=3.2, linewidth=1.1, color=mine, label=label)
    if names:
        curve = run.curves[names[-1]]
        accuracy.annotate(
            f"{100 * curve.values[-1]:.1f}%",
            (curve.epochs[-1], curve.values[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            color=color or palette[EMA if len(names) > 1 else TOP1],
            annotation_clip=False,
        )


def _limits(loss: Any, accuracy: Any, runs: Sequence[RunData]) -> None:
    curves = [run.curves for run in runs]
    epochs = max(curve.epochs[-1] for found in curves for curve in found.values())
    losses = scale_for(value for found in curves for value in found["loss"].values)
    loss.set_ylim(losses.low, losses.high)
    for axes in (loss, accuracy):
        axes.set_xlim(0, epochs or 1)


def _draw_marks(axes: Any, marks: Sequence[Interruption]) -> None:
    """A dotted line at each interruption, with a sign of its kind at the top."""
    for mark in marks:
        sign, color = MARKS[mark.kind]
        axes.axvline(mark.epoch, color=color, linewidth=0.9, linestyle=":", zorder=1.5)
        axes.plot(
            [mark.epoch],
            [1.035],
            transform=axes.get_xaxis_transform(),
            marker=sign,
            markersize=5.5,
            markeredgewidth=0,
            linestyle="",
            color=color,
            clip_on=False,
        )


def _words(
    figure: Any,
    both: tuple[Any, Any],
    runs: Sequence[RunData],
    over: RunData | None,
    marks: Sequence[Interruption],
    colors: dict[str, str],
    given_title: str,
) -> None:
    """The title, what was found, and the legend below the curves."""
    title = " and ".join(plain(run.name) for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    for kind, name in NAMES.items():
        number = sum(mark.kind == kind for mark in marks)
        if number:
            sign, color = MARKS[kind]
            both[0].plot([], [], linestyle="", marker=sign, color=color, markeredgewidth=0, label=f"{name} ({number})")
    found = f"{counted(len(marks), 'interruption')}. " if marks else ""
    if over is not None and len(runs) == 1:
        same = sameness(runs[0], over)
        title += f" over {plain(over.name)}"
        found += same.describe(plain(over.name)) if same is not None else ""
    title = (plain(given_title) or title) + ("\n" if found else "")
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=colors["text"])
    options = {"frameon": False, "labelcolor": colors["soft"], "fontsize": 8.5, "handlelength": 1.4}
    if len(runs) > 1 or over is not None or marks:
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, columnspacing=1.8, **options)
    if len(runs) == 1 and over is None and "val_top1_average" in runs[0].curves:
        both[1].legend(loc="lower right", **options)
    if found:
        below = 1 - 22 / 72 / figure.get_figheight()  # the title takes 22 points
        figure.text(0.012, below, found, color=colors["soft"], fontsize=9, va="top")
