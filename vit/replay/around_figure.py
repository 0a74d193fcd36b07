"""The picture of `--around`: the losses of all samples of some steps, their means, and the spikes."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit.replay.spikes import Spike, StepLosses
from vit.run.figures import import_matplotlib

LABELED = 3  # samples of a spike
_TEXT, _SOFT, _GRID = "#1c2024", "#60646c", "#eeeff1"
_DOT, _HIGH, _MEAN = "#4477aa", "#b3261e", "#1c2024"
_WIDTH = 0.6  # of the strip of a step, in steps
_LOGARITHMIC = 200.0  # highest loss over the median of the steps, from which on the axis is logarithmic
_GOLDEN = 0.618034  # multiples of it, without their whole parts, lie apart: points do not hide each other


def draw_window(
    steps: Sequence[StepLosses], spikes: Sequence[Spike], limit: float | None, around: int, title: str
) -> Image.Image:
    """A strip of points for each step; the samples that make a spike are red and have their numbers."""
    matplotlib = import_matplotlib()
    from matplotlib import pyplot  # after the backend is chosen

    style = {"font.size": 9, "text.color": _TEXT, "text.parse_math": False, "savefig.facecolor": "white"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # characters that the font does not have
        width = min(16.0, max(7.0, 0.4 * len(steps) + 2.5))
        figure, axes = pyplot.subplots(figsize=(width, 4.2), layout="constrained")
        try:
            _prepare(axes, steps, title)
            top = _limits(axes, steps)
            _draw_samples(axes, steps, {spike.of.step: spike for spike in spikes}, top)
            _draw_means(axes, steps, limit, top)
            _mark(axes, spikes, around)
            figure.legend(loc="outside lower left", ncols=7, frameon=False, labelcolor=_SOFT, fontsize=8)
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=110)
        finally:
            pyplot.close(figure)
    return Image.open(file).convert("RGB")


def _prepare(axes: Any, steps: Sequence[StepLosses], title: str) -> None:
    shown = "".join(c if c.isprintable() else " " for c in title.encode(errors="replace").decode())
    axes.set_title(shown, loc="left", fontsize=9, color=_SOFT, pad=20)
    axes.set_xlabel("step", loc="right", color=_SOFT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(length=0, colors=_SOFT)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(steps[0].step - 0.6, steps[-1].step + 0.6)
    stride = max(1, -(-len(steps) // 24))
    axes.set_xticks([each.step for each in steps[::stride]], [f"{each.step:,}" for each in steps[::stride]])


def _limits(axes: Any, steps: Sequence[StepLosses]) -> float:
    """Fits the loss axis to what is finite; returns the loss at its top, where the rest is drawn."""
    losses = np.concatenate([each.losses[np.isfinite(each.losses)] for each in steps])
    highest = float(losses.max()) if len(losses) else 1.0
    lowest = float(losses.min()) if len(losses) else 0.0
    means = [each.loss for each in steps if math.isfinite(each.loss)]
    if lowest > 0 and means and highest > _LOGARITHMIC * float(np.median(means)):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        axes.minorticks_off()
        top = highest * 2
        axes.set_ylim(lowest / 1.5, top)
    else:
        top = highest * 1.12 or 1.0
        axes.set_ylim(min(0.0, lowest), top)
    return top


def _draw_samples(axes: Any, steps: Sequence[StepLosses], spikes: dict[int, Spike], top: float) -> None:
    """All images, those that make a spike in red."""
    size = max(3.0, min(18.0, 6000 / max(len(each.losses) for each in steps) / len(steps)))
    named: dict[str, bool] = {}

    def points(x: Any, y: Any, label: str, **how: Any) -> None:
        if len(x):
            axes.scatter(x, y, label=None if named.get(label) else label, linewidths=0, **how)
            named[label] = True

    for each in steps:
        x = each.step + _WIDTH * ((np.arange(len(each.losses)) * _GOLDEN) % 1 - 0.5)
        y = np.where(np.isfinite(each.losses), each.losses, top)
        spike = spikes.get(each.step)
        high = np.zeros(len(y), dtype=bool)
        high[spike.high if spike else []] = True
        usual = ~high & np.isfinite(each.losses)
        points(x[usual], y[usual], "sample", s=size, color=_DOT, alpha=0.45)
        points(x[high], y[high], "sample that makes a spike", s=1.6 * size, color=_HIGH, alpha=0.9)
        broken = ~np.isfinite(each.losses)
        if broken.any():
            label = None if named.get("broken") else "not finite"
            axes.scatter(x[broken], y[broken], marker="x", s=28, color=_HIGH, label=label, clip_on=False)
            named["broken"] = True
        for row in spike.high[:LABELED] if spike else []:
            other = f" + {each.partners[row]:,}" if each.partners[row] >= 0 else ""
            text = f"{each.samples[row]:,}{other}"
            where = {"xytext": (4, 2), "textcoords": "offset points", "fontsize": 7, "color": _HIGH}
            axes.annotate(text, (x[row], y[row]), **where)


def _draw_means(axes: Any, steps: Sequence[StepLosses], limit: float | None, top: float) -> None:
    """The mean of each step here and in the run, and the limit of spikes."""
    numbers = [each.step for each in steps]
    means = [each.loss if math.isfinite(each.loss) else top for each in steps]
    axes.plot(numbers, means, color=_MEAN, linewidth=1.2, marker="o", markersize=3.5, label="mean of the step")
    recorded = [(each.step, each.recorded) for each in steps if each.recorded is not None]
    if recorded:
        how = {"marker": "o", "s": 60, "facecolors": "none", "edgecolors": "#c79100", "linewidths": 1.2, "zorder": 4}
        axes.scatter(*zip(*recorded, strict=True), label="recorded by the run", **how)
    if limit is not None and limit < top:
        axes.axhline(limit, color=_SOFT, linewidth=0.8, linestyle=(0, (4, 4)), label="limit of spikes")


def _mark(axes: Any, spikes: Sequence[Spike], around: int) -> None:
    """A triangle above each spike; the step that was asked for is bold."""
    place = axes.get_xaxis_transform()
    if spikes:
        x = [spike.of.step for spike in spikes]
        axes.scatter(x, [1.05] * len(x), marker="v", s=36, color=_HIGH, transform=place, clip_on=False, label="spike")
    for tick in axes.get_xticklabels():
        if tick.get_text() == f"{around:,}":
            tick.set_fontweight("bold")
            tick.set_color(_TEXT)
