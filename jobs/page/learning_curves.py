"""The learning curves of one run, or of several in the same charts."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from jobs.page.curves import Curve
from jobs.page.interruptions import Interruption, interruptions
from jobs.page.line_chart import Chart
from jobs.page.lines import Axis, Line, Spread
from jobs.page.run_data import RunData
from jobs.page.scales import Scale, log_scale_for, number, scale_for
from jobs.page.series import Series, single
from jobs.page.thinning import column_means
from vit.history.settings import setting

NOISY_POINTS, MEAN_COLUMNS = 800, 160  # curves of so many points are drawn with their mean over so many parts
TRAINING, VALIDATION, EMA = 1, 2, 4  # colors
COLORS = 6
MIXED = "with mixup, CutMix or label smoothing: not comparable with the validation loss"
UNITS = (("seconds", 1, 120), ("minutes", 60, 2 * 3600), ("hours", 3600, 72 * 3600), ("days", 86400, math.inf))


@dataclass(frozen=True)
class Panel:
    """What is common to the charts of a value."""

    id: str
    title: str
    values: tuple[str, ...]  # names of curves; of one run all, of several runs the first that exists
    size: str = "wide"
    zero: bool = False
    write: Callable[[float], str] = number
    factor: float = 1.0
    unit: str = ""


def top1(share: float) -> str:
    """An accuracy, in percent."""
    return f"{100 * share:.1f}%"


LOSS = Panel("loss", "Loss", ("loss", "val_loss", "val_loss_average"))
TOP1 = Panel("top1", "Top-1 accuracy", ("val_top1", "val_top1_average"), write=top1, factor=100, unit="%")
SMALL = (
    Panel("lr", "Learning rate", ("lr",), "small", zero=True),
    Panel("grad-norm", "Gradient norm", ("grad_norm",), "small"),
    Panel("images", "Images per second", ("images_per_second",), "small", zero=True),
)
OF_SEVERAL = (
    Panel("loss", "Training loss", ("loss",), "third"),
    Panel("val-loss", "Validation loss", ("val_loss_average", "val_loss"), "third"),
    replace(TOP1, size="third", values=("val_top1_average", "val_top1")),
    *SMALL,
)
LABELS = {"loss": "training", "val_loss": "validation", "val_loss_average": "validation, EMA"}
LABELS |= {"val_top1": "weights", "val_top1_average": "EMA"}


def charts_of_run(run: RunData) -> list[Chart]:
    """The charts of one run, without those that would be empty."""
    axes, marks = axes_for([single(run)]), [(mark, run.began) for mark in interruptions(run)]
    bands = _bands(run, [mark for mark, _ in marks], axes)
    out = []
    for panel in (LOSS, TOP1, *SMALL):
        lines = [_line(run, name, panel) for name in panel.values if name in run.curves]
        if "loss" in panel.values and "loss" in run.repeated:
            lines.insert(0, _repeated(run))
        if lines:
            note = MIXED if panel is LOSS and len(lines) > 1 and has_mixed_targets(run) else ""
            out.append(_chart(panel, lines, axes, marks, bands, note=note))
    return out


def charts_of_several(drawn: Sequence[Series], over: Series | None = None) -> list[Chart]:
    """The charts of several runs, one line for each series; `over` is drawn as a wide line below the others."""
    axes, out = axes_for(drawn), []
    columns = max(60, 500 // len(drawn))
    mixed = any(has_mixed_targets(run) for series in drawn for run in series.runs)
    for panel in OF_SEVERAL:
        lines = []
        for series in sorted(drawn, key=lambda series: series is not over):
            name = next((name for name in panel.values if name in series.curves), None)
            if name is not None:
                dots = "val_" in name and len(drawn) <= COLORS
                form = "wide" if series is over else "dots" if dots else "line"
                color = 0 if series is over else 1 + drawn.index(series) % COLORS
                lines.append(_series_line(series, name, color, form))
        if lines:
            runs = [run for series in drawn for run in series.runs]
            marks = [(mark, run.began) for run in runs for mark in interruptions(run)] if over is not None else []
            note = "mixed labels: not comparable" if panel.id == "loss" and mixed else ""
            out.append(replace(_chart(panel, lines, axes, marks, (), columns, note), legend=False))
    return out


def has_mixed_targets(run: RunData) -> bool:
    """Whether the training loss is not that of the true classes."""
    return any(setting(run.settings, f"augment.{name}") > 0 for name in ("mixup", "cutmix", "label_smoothing"))


def axes_for(drawn: Sequence[Series]) -> list[Axis]:
    """The axis of epochs, and that of time if the times of all are known."""
    out = [Axis(kind="epochs", label="epoch", scale=Scale(0.0, max(map(_last_epoch, drawn), default=1.0) or 1.0))]
    known = [series.duration for series in drawn if series.duration is not None]
    if known:
        name, unit = unit_of(max(known))
        out.append(Axis(kind="time", label=name, scale=Scale(0.0, max(known) / unit or 1.0), unit=unit))
    return out


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit in which a duration is shown: its name, and its length in seconds."""
    return next((name, float(unit)) for name, unit, limit in UNITS if seconds < limit)


def _last_epoch(series: Series) -> float:
    seen = max((curve.epochs[-1] for curve in series.curves.values()), default=0.0)
    return series.epochs if series.epochs and seen >= 0.7 * series.epochs else seen


def _line(run: RunData, name: str, panel: Panel) -> Line:
    color = EMA if name.endswith("_average") else VALIDATION if name.startswith("val_") else TRAINING
    form = "dots" if name.startswith("val_") else "line"
    return Line(
        label=LABELS.get(name, panel.title),
        color=color,
        curve=run.curves[name],
        began=run.began,
        breaks=_breaks(run),
        form=form,
    )


def _series_line(series: Series, name: str, color: int, form: str) -> Line:
    return Line(
        label=series.name,
        color=color,
        curve=series.curves[name],
        spread=series.spreads.get(name),
        began=series.began,
        breaks=series.breaks,
        form=form,
        group=series.name,
    )


def _repeated(run: RunData) -> Line:
    return Line(
        label="repeated steps",
        color=TRAINING,
        curve=run.repeated["loss"],
        began=run.began,
        breaks=_breaks(run),
        form="faint",
        group=LABELS["loss"],
    )


def _breaks(run: RunData) -> list[float]:
    return sorted(attempt.began for attempt in run.attempts)


def with_means(lines: Sequence[Line]) -> list[Line]:
    """The lines; those of so many points that only their noise would be seen become pale, with their mean above."""
    out: list[Line] = []
    for line in lines:
        curve = line.curve
        if line.form != "line" or len(curve) < NOISY_POINTS or _is_smooth(curve):
            out.append(line)
            continue
        means = column_means(curve.epochs, curve.values, MEAN_COLUMNS)
        mean = replace(curve.pick([i for i, _ in means]), values=[value for _, value in means])
        if line.spread is not None:
            out.append(replace(line, curve=mean, spread=_smooth(line.spread, curve)))
            continue
        group = line.group or line.label
        out += [
            replace(line, form="noise", group=group),
            replace(line, label=f"{line.label}, mean", curve=mean, group=group),
        ]
    return out


def _smooth(spread: Spread, curve: Curve) -> Spread:
    low, high = (column_means(curve.epochs, values, MEAN_COLUMNS) for values in (spread.low, spread.high))
    return Spread([value for _, value in low], [value for _, value in high])


def _is_smooth(curve: Curve) -> bool:
    """Whether neighbors differ by little, as in a schedule."""
    differences = sum(abs(a - b) for a, b in itertools.pairwise(curve.values)) / len(curve)
    return differences < 0.01 * (max(curve.values) - min(curve.values))


def _chart(
    panel: Panel,
    lines: Sequence[Line],
    axes: Sequence[Axis],
    marks: Sequence[tuple[Interruption, float | None]],
    bands: Sequence[tuple[str, float, float, str]] = (),
    columns: int = 500,
    note: str = "",
) -> Chart:
    values = [value for line in lines for value in line.values()]
    if panel.id == "grad-norm" and _spread(values) > 15:
        scale, note = log_scale_for(values), "logarithmic"
    else:
        scale = scale_for(values, panel.zero)
    return Chart(
        id=panel.id,
        title=panel.title,
        lines=with_means(lines),
        axes=axes,
        scale=scale,
        marks=marks,
        write=panel.write,
        columns=columns,
        size=panel.size,
        note=note,
        bands=bands,
        factor=panel.factor,
        unit=panel.unit,
        ends=panel.size in ("wide", "third"),
    )


def _spread(values: Sequence[float]) -> float:
    """How many times the median the largest value is."""
    median = sorted(values)[len(values) // 2]
    return max(values) / median if median > 0 else 0.0


def _bands(run: RunData, marks: Iterable[Interruption], axes: Sequence[Axis]) -> list[tuple[str, float, float, str]]:
    """The steps that were repeated, over epochs; the time between attempts, over time."""
    out: list[tuple[str, float, float, str]] = []
    for mark in marks:
        if mark.resumed_at is not None and 0 <= mark.resumed_at < mark.step and mark.step:
            out.append(("epochs", mark.epoch * mark.resumed_at / mark.step, mark.epoch, "repeated"))
    unit = next((axis.unit for axis in axes if axis.kind == "time"), None)
    for before, after in zip(run.attempts, run.attempts[1:], strict=False):
        begin, end, zero = before.ended or before.seen, after.started or after.began, run.began
        if unit is not None and zero is not None and end > begin:
            out.append(("time", (begin - zero) / unit, (end - zero) / unit, "gap"))
    return out


def last(curve: Curve | None) -> float | None:
    """The newest value of a curve."""
    return curve.values[-1] if curve is not None and len(curve) else None
