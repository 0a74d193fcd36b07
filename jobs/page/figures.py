"""Pictures of learning curves for papers and READMEs, with Matplotlib, which is imported late: it takes a second."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.page.comparison import sameness
from jobs.page.interruptions import Interruption, interruptions
from jobs.page.learning_curves import COLORS, MIXED, has_mixed_targets
from jobs.page.run_data import RunData
from jobs.page.scales import scale_for
from jobs.page.seed_table import last_accuracy
from jobs.page.series import Series, series_of, single
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
VAL_LOSS = {"val_loss", "val_loss_average"}
MARKS = {"stop": ("v", "#8b8d98"), "failure": ("X", "#cc4455"), "rollback": ("D", "#aa3377")}
NAMES = {"stop": "stopped and saved", "failure": "killed or failed", "rollback": "rolled back"}
THEMES = {
    "light": {"text": "#1c2024", "soft": "#60646c", "grid": "#eeeff1", "background": "#ffffff"},
    "dark": {"text": "#eceef0", "soft": "#a8adb5", "grid": "#24282c", "background": "#0d1117"},
}


def draw(
    runs: Sequence[RunData],
    out: Path,
    over: RunData | None = None,
    theme: str = "light",
    title: str = "",
    each: bool = False,
) -> None:
    """Training loss and accuracy over epochs, of several runs also the validation loss, with marks at interruptions.

    The default title is the names of the runs.  `over` is drawn as a wide pale line below the others.  Without it, runs
    that differ only in their seed are drawn as their mean, unless `each` is to be seen.  Raises UserError if a run has
    no learning curve.
    """
    drawn = series_of(runs, each or over is not None)
    for series in [*drawn, *([single(over)] if over is not None else [])]:
        if "loss" not in series.curves:
            unreadable = [problem for run in series.runs for problem in run.problems if "metrics.jsonl" in problem]
            missing = f"{series.runs[0].folder} has no learning curve yet: metrics.jsonl is missing or empty"
            raise UserError("\n".join(unreadable) or missing)
    colors = THEMES[theme]
    several = len(drawn) > 1 or any(series.is_mean for series in drawn)
    validated = several and over is None and any(VAL_LOSS & series.curves.keys() for series in drawn)
    names = ["training loss", *(["validation loss"] if validated else []), "test top-1"]
    widths = (1, 1, 1) if validated else (1.5, 1)
    with styled(theme) as pyplot:
        size = (12 if validated else 10, 3.9)
        figure, panels = pyplot.subplots(1, len(widths), figsize=size, width_ratios=widths, layout="constrained")
        loss, accuracy = panels[0], panels[-1]
        for axes, name in zip(panels, names, strict=True):
            _prepare(axes, name, colors)
        accuracy.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        if over is not None:
            _draw_below(over, loss, accuracy, colors)
        for i, series in enumerate(drawn):
            _draw_series(series, loss, accuracy, i if several or over is not None else None, RUN_COLORS[theme])
            if validated:
                _draw_validation_loss(panels[1], series, RUN_COLORS[theme][i % COLORS])
        _limits(panels, [*drawn, *([single(over)] if over is not None else [])])
        marks = [mark for run in runs for mark in interruptions(run)]
        for axes in panels:
            _draw_marks(axes, marks)
        _words(figure, (loss, accuracy), drawn, over, marks, colors, title)
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


def _draw_series(series: Series, loss: Any, accuracy: Any, number: int | None, palette: Sequence[str]) -> None:
    """In its own color of the palette, by its number, if there are several."""
    color = None if number is None else palette[number % len(palette)]
    _draw_curve(loss, series, "loss", color=color or palette[LOSS], label=plain(series.name))
    names = [name for name in ("val_top1", "val_top1_average") if name in series.curves]
    for name in names[-1:] if color else names:
        mine = color or palette[TOP1 if name == "val_top1" else EMA]
        label = plain(series.name) if color else "EMA" if name.endswith("average") else "weights"
        _draw_curve(accuracy, series, name, marker="o", markersize=3.2, color=mine, label=label)
    if names:
        curve = series.curves[names[-1]]
        accuracy.annotate(
            last_accuracy(series),
            (curve.epochs[-1], curve.values[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            color=color or palette[EMA if len(names) > 1 else TOP1],
            annotation_clip=False,
        )


def _draw_validation_loss(axes: Any, series: Series, color: str) -> None:
    name = next((name for name in ("val_loss_average", "val_loss") if name in series.curves), None)
    if name is not None:
        _draw_curve(axes, series, name, marker="o", markersize=3.2, color=color, label=plain(series.name))


def _draw_curve(axes: Any, series: Series, name: str, **style: Any) -> None:
    """The curve, of several runs with a band from the lowest to the highest."""
    curve, spread = series.curves[name], series.spreads.get(name)
    kept = thin(curve.epochs, curve.values, 1000)
    if spread is not None:
        low, high = ([values[i] for i in kept] for values in (spread.low, spread.high))
        axes.fill_between([curve.epochs[i] for i in kept], low, high, color=style["color"], alpha=0.18, linewidth=0)
    curve = curve.pick(kept)
    axes.plot(curve.epochs, curve.values, linewidth=1.1, **style)


def _limits(panels: Sequence[Any], drawn: Sequence[Series]) -> None:
    epochs = max(curve.epochs[-1] for series in drawn for curve in series.curves.values())
    losses = scale_for(value for series in drawn for value in series.curves["loss"].values)
    panels[0].set_ylim(losses.low, losses.high)
    for axes in panels:
        axes.set_xlim(0, epochs or 1)


def _draw_marks(axes: Any, marks: Sequence[Interruption]) -> None:
    """A dotted line at each interruption, with a sign of its kind at the top."""
    for kind in {mark.kind: None for mark in marks}:
        sign, color = MARKS[kind]
        epochs = [mark.epoch for mark in marks if mark.kind == kind]
        across = axes.get_xaxis_transform()
        axes.vlines(epochs, 0, 1, transform=across, color=color, linewidth=0.9, linestyle=":", zorder=1.5)
        style = {"marker": sign, "markersize": 5.5, "markeredgewidth": 0, "linestyle": "", "color": color}
        axes.plot(epochs, [1.035] * len(epochs), transform=across, clip_on=False, **style)


def _words(
    figure: Any,
    both: tuple[Any, Any],
    drawn: Sequence[Series],
    over: RunData | None,
    marks: Sequence[Interruption],
    colors: dict[str, str],
    given_title: str,
) -> None:
    """The title, what was found, and the legend below the curves."""
    more = f" and {len(drawn) - 3} more" if len(drawn) > 3 else ""
    title = " and ".join(plain(series.name) for series in drawn[:3]) + more
    for kind, name in NAMES.items():
        number = sum(mark.kind == kind for mark in marks)
        if number:
            sign, color = MARKS[kind]
            both[0].plot([], [], linestyle="", marker=sign, color=color, markeredgewidth=0, label=f"{name} ({number})")
    found = f"{counted(len(marks), 'interruption')}. " if marks else ""
    if any(series.spreads for series in drawn):
        found += "Lines: means over the seeds; bands: from the lowest to the highest. "
    if len(drawn) > 1 and over is None and any(has_mixed_targets(run) for series in drawn for run in series.runs):
        found += "Training losses " + MIXED + "."
    if over is not None and len(drawn) == 1:
        same = sameness(drawn[0].runs[0], over)
        title += f" over {plain(over.name)}"
        found += same.describe(plain(over.name)) if same is not None else ""
    title = (plain(given_title) or title) + ("\n" if found else "")
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=colors["text"])
    options = {"frameon": False, "labelcolor": colors["soft"], "fontsize": 8.5, "handlelength": 1.4}
    if len(drawn) > 1 or over is not None or marks:
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, columnspacing=1.8, **options)
    if len(drawn) == 1 and not drawn[0].is_mean and over is None and "val_top1_average" in drawn[0].curves:
        both[1].legend(loc="lower right", **options)
    if found:
        below = 1 - 22 / 72 / figure.get_figheight()  # the title takes 22 points
        figure.text(0.012, below, found, color=colors["soft"], fontsize=9, va="top")
