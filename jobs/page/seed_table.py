"""Mean and standard deviation over the seeds of runs that differ only in their seed, as a table."""

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from jobs.page.curves import Curve
from jobs.page.elements import Html, element
from jobs.page.run_data import RunData
from jobs.page.scales import number, percent
from jobs.page.series import Series

HEADS = (
    "mean ± deviation over seeds",
    "last top-1",
    "best top-1",
    "training loss",
    "validation loss",
    "lowest validation loss",
)


def seed_rows(series: Sequence[Series]) -> list[tuple[str, ...]]:
    """One row for each mean, with the columns HEADS; the deviation is that of a sample."""
    return [
        (
            one.name,
            *(
                _over(one.drawn, read, names, write)
                for read, names, write in (
                    (_last, ("val_top1_average", "val_top1"), _percent),
                    (max, ("val_top1_average", "val_top1"), _percent),
                    (_last, ("loss",), number),
                    (_last, ("val_loss_average", "val_loss"), number),
                    (min, ("val_loss_average", "val_loss"), number),
                )
            ),
        )
        for one in series
        if one.is_mean
    ]


def seed_table(series: Sequence[Series]) -> Html | None:
    """The table of a page; None if no runs differ only in their seed."""
    rows = [element("tr", *(element("td", cell) for cell in row)) for row in seed_rows(series)]
    if not rows:
        return None
    head = element("tr", *(element("th", text) for text in HEADS))
    table = element("table", element("thead", head), element("tbody", *rows), class_="numbers")
    note = "Deviation: standard deviation of a sample. Bands in the charts: from the lowest to the highest run."
    return element("div", table, element("p", note, class_="note"), class_="scroll part")


def seed_lines(series: Sequence[Series]) -> list[str]:
    """The table as text; empty if no runs differ only in their seed."""
    rows = seed_rows(series)
    if not rows:
        return []
    widths = [max(len(row[i]) for row in (HEADS, *rows)) for i in range(len(HEADS))]
    aligned = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (HEADS, *rows)
    ]
    return ["  ".join(cells) for cells in aligned]


def mean_and_deviation(values: Sequence[float], write: Callable[[float], str]) -> str:
    """`0.521 ± 0.010`: the deviation has the places of the mean; without one if there is one value."""
    if not values:
        return "–"
    mean = write(fmean(values))
    if len(values) < 2:
        return mean
    deviation, places = stdev(values), len(mean.partition(".")[2])
    if write is not number:
        return f"{mean} ± {write(deviation)}"
    rounded = f"{deviation:.{places}f}"
    return f"{mean} ± {rounded if 'e' not in mean and float(rounded) else number(deviation, 2)}"


def last_accuracy(series: Series) -> str:
    """The last top-1 accuracy in percent, of the EMA if there is one: `74.1%`, of several runs `74.1 ± 0.5%`."""
    return _over(series.drawn, _last, ("val_top1_average", "val_top1"), lambda share: f"{100 * share:.1f}") + "%"


def _over(
    runs: Sequence[RunData],
    read: Callable[[Sequence[float]], float],
    names: Sequence[str],
    write: Callable[[float], str],
) -> str:
    curves = [curve for run in runs if (curve := _first(run, names)) is not None]
    return mean_and_deviation([read(curve.values) for curve in curves], write)


def _first(run: RunData, names: Sequence[str]) -> Curve | None:
    return next((run.curves[name] for name in names if name in run.curves), None)


def _last(values: Sequence[float]) -> float:
    return values[-1]


def _percent(share: float) -> str:
    return percent(share, 2)
