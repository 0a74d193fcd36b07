"""The learning curves of one run, or of several in the same charts."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from jobs.page.curves import Curve
from jobs.page.interruptions import Interruption, interruptions
from jobs.page.line_chart import Axis, Chart, Line
from jobs.page.run_data import RunData
from jobs.page.scales import Scale, log_scale_for, number, scale_for
from jobs.page.thinning import column_means

NOISY_POINTS, MEAN_COLUMNS = 800, 160  # curves of so many points are drawn with their mean over so many parts
TRAINING, VALIDATION, EMA = 1, 2, 4  # colors
COLORS = 6
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
    Panel("loss", "Training loss", ("loss",)),
    Panel("top1", "Top-1 accuracy", ("val_top1_average", "val_top1"), write=top1, factor=100, unit="%"),
    Panel("val-loss", "Validation loss", ("val_loss_average", "val_loss"), "quarter"),
    *(replace(panel, size="quarter") for panel in SMALL),
)
LABELS = {"loss": "training", "val_loss": "validation", "val_loss_average": "validation, EMA"}
LABELS |= {"val_top1": "weights", "val_top1_average": "EMA"}


def charts_of_run(run: RunData) -> list[Chart]:
    """The charts of one run, without those that would be empty."""
    axes, marks = axes_for([run]), [(mark, run.began) for mark in interruptions(run)]
    bands = _bands(run, [mark for mark, _ in marks], axes)
    out = []
    for panel in (LOSS, TOP1, *SMALL):
        lines = [_line(run, name, panel) for name in panel.values if name in run.curves]
        if "loss" in panel.values and "loss" in run.repeated:
            lines.insert(0, _repeated(run))
        if lines:
            out.append(_chart(panel, lines, axes, marks, bands))
    return out


def charts_of_runs(runs: Sequence[RunData], over: RunData | None = None) -> list[Chart]:
    """The charts of several runs, one line for each; `over` is drawn as a wide line below the others."""
    axes, out = axes_for(runs), []
    columns = max(60, 500 // len(runs))
    for panel in OF_SEVERAL:
        lines = []
        for run in sorted(runs, key=lambda run: run is not over):
            name = next((name for name in panel.values if name in run.curves), None)
            if name is not None:
                dots = "val_" in name and len(runs) <= COLORS
                form = "wide" if run is over else "dots" if dots else "line"
                color = 0 if run is over else 1 + runs.index(run) % COLORS
                lines.append(_run_line(run, name, color, form))
        if lines:
            marks = [(mark, run.began) for run in runs for mark in interruptions(run)] if over is not None else []
            out.append(replace(_chart(panel, lines, axes, marks, (), columns), legend=False))
    return out


def axes_for(runs: Sequence[RunData]) -> list[Axis]:
    """The axis of epochs, and that of time if the times of all runs are known."""
    out = [Axis(kind="epochs", label="epoch", scale=Scale(0.0, max(map(_last_epoch, runs), default=1.0) or 1.0))]
    lasted = [_duration(run) for run in runs]
    known = [seconds for seconds in lasted if seconds is not None]
    if known:
        name, unit = unit_of(max(known))
        out.append(Axis(kind="time", label=name, scale=Scale(0.0, max(known) / unit or 1.0), unit=unit))
    return out


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit in which a duration is shown: its name, and its length in seconds."""
    return next((name, float(unit)) for name, unit, limit in UNITS if seconds < limit)


def _last_epoch(run: RunData) -> float:
    seen = max((curve.epochs[-1] for curve in run.curves.values()), default=0.0)
    return run.epochs if run.epochs and seen >= 0.7 * run.epochs else seen


def _duration(run: RunData) -> float | None:
    curves = [curve for curve in (*run.curves.values(), *run.repeated.values()) if curve.has_times()]
    if run.began is None or not curves:
        return None
    ends = [attempt.ended for attempt in run.attempts if attempt.ended is not None]
    return (
        max(max(curve.times) for curve in curves) - run.began
        if not ends
        else max(*ends, *(max(curve.times) for curve in curves)) - run.began
    )


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


def _run_line(run: RunData, name: str, color: int, form: str) -> Line:
    return Line(
        label=run.name,
        color=color,
        curve=run.curves[name],
        began=run.began,
        breaks=_breaks(run),
        form=form,
        group=run.name,
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
        group = line.group or line.label
        out += [
            replace(line, form="noise", group=group),
            replace(line, label=f"{line.label}, mean", curve=mean, group=group),
        ]
    return out


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
) -> Chart:
    values = [value for line in lines for value in line.curve.values]
    note = ""
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
        ends=panel.size == "wide",
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
