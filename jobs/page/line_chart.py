"""A chart of curves: lines in an SVG that is stretched to any width, and text beside it that is not.

Every chart has two pictures, over epochs and over time; the page shows one of them.  Coordinates are whole numbers
from 0 to SIZE, and strokes do not scale.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jobs.page.elements import Html, element
from jobs.page.interruptions import Interruption
from jobs.page.lines import Axis, Line, band
from jobs.page.scales import Scale, number, tick_label
from jobs.page.thinning import straightened, thin

SIZE = 10_000
MANY_MARKS = 40  # of more, only those under the mouse have a line


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart and what is drawn on it."""

    id: str
    title: str
    lines: Sequence[Line]
    axes: Sequence[Axis]
    scale: Scale
    marks: Sequence[tuple[Interruption, float | None]] = ()  # each with the beginning of its run
    write: Callable[[float], str] = number  # a value in words
    columns: int = 500
    size: str = "wide"
    note: str = ""
    bands: Sequence[tuple[str, float, float, str]] = ()  # kind of axis, from, to, style: shaded behind the lines
    factor: float = 1.0  # of the values on the vertical axis, as 100 for percent
    unit: str = ""  # written after them
    legend: bool = True
    is_first: bool = False  # of a page: a keyboard and a screen reader find its marks, but not those of the others
    ends: bool = True  # write the last value at the end of each line
    points: list[dict[str, object]] = field(default_factory=list)  # for the page's script; filled by `draw`


def draw(chart: Chart) -> Html:
    """The chart as a figure."""
    pictures = [_picture(chart, axis) for axis in chart.axes]
    ticks = chart.scale.ticks(4 if chart.size == "small" else 5)
    labels = [
        element(
            "span",
            tick_label(chart.factor * t, [chart.factor * u for u in ticks]) + chart.unit,
            style=f"bottom:{_percent(chart.scale(t))}",
        )
        for t in ticks
        if -0.001 <= chart.scale(t) <= 1.001
    ]
    plot = element(
        "div",
        element("div", *labels, class_="y-labels", aria_hidden="true"),
        element("div", *pictures, *_marks(chart), element("div", *_ends(chart), class_="ends"), class_="plot"),
        class_="frame",
    )
    caption = element(
        "figcaption", element("h3", chart.title), _legend(chart), element("p", chart.note) if chart.note else None
    )
    return element(
        "figure",
        caption,
        plot,
        class_=f"chart {chart.size}{' has-ends' if chart.ends else ''}",
        id=chart.id,
        data_chart=chart.id,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _legend(chart: Chart) -> Html | None:
    shown = {line.group or line.label: line for line in chart.lines if line.group in ("", line.label)}
    if len(shown) < 2 or not chart.legend:
        return None
    buttons = [
        element(
            "button",
            element("i", class_=f"swatch c{line.color} {line.form}"),
            line.label,
            type="button",
            aria_pressed="true",
            data_toggles=line.label,
        )
        for line in shown.values()
    ]
    return element("div", *buttons, class_="legend")


def _picture(chart: Chart, axis: Axis) -> Html:
    grid = [
        _horizontal(chart.scale(t))
        for t in chart.scale.ticks(4 if chart.size == "small" else 5)
        if 0 <= chart.scale(t) <= 1
    ]
    paths = [path for i, line in enumerate(chart.lines) if (path := _path(chart, axis, i, line)) is not None]
    svg = element(
        "svg",
        *_bands(chart, axis),
        element("g", *grid, class_="grid"),
        *paths,
        viewBox=f"0 0 {SIZE} {SIZE}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    ticks = axis.scale.ticks(5 if chart.size == "small" else 8)
    spans = [
        element(
            "span", tick_label(t, ticks), style=f"left:{_percent(axis.scale(t))}", class_=None if i % 2 == 0 else "odd"
        )
        for i, t in enumerate(ticks)
        if -0.001 <= axis.scale(t) <= 1.001
    ]
    return element(
        "div",
        svg,
        element("div", *spans, class_="x-labels", aria_hidden="true"),
        element("div", axis.label, class_="x-title", aria_hidden="true"),
        class_=f"by-{axis.kind}",
        data_low=axis.scale.low,
        data_high=axis.scale.high,
    )


def _horizontal(share: float) -> Html:
    y = round(SIZE * (1 - share))
    return Html(f'<path d="M0 {y}H{SIZE}"/>'.encode())


def _path(chart: Chart, axis: Axis, index: int, line: Line) -> Html | None:
    curve = line.curve
    if axis.kind == "time" and (line.began is None or not curve.has_times()):
        return None
    if axis.kind == "epochs" and line.form == "faint":
        return None
    if axis.kind == "time":
        x = [(time - (line.began or 0.0)) / axis.unit for time in curve.times]
    else:
        x = curve.epochs
    kept = thinned(x, curve.values, chart, axis)
    if line.spread is not None:
        edges = [thinned(x, values, chart, axis) for values in (line.spread.low, line.spread.high)]
        kept = sorted(set(kept).union(*edges))

    def at(i: int, value: float) -> tuple[int, int]:
        return round(SIZE * axis.scale(x[i])), round(SIZE * (1 - min(1.02, max(-0.02, chart.scale(value)))))

    def place(i: int) -> tuple[int, int]:
        return at(i, curve.values[i])

    parts: list[str] = []
    last, segment = (0, 0), -1
    for i in kept:
        here = place(i)
        mine = bisect_right(line.breaks, curve.times[i]) if axis.kind == "time" else 0
        parts.append(f"M{here[0]} {here[1]}" if mine != segment else f"l{here[0] - last[0]} {here[1] - last[1]}")
        last, segment = here, mine
    d = "".join(parts)
    picked = curve.pick(kept)
    chart.points.append(
        {
            "line": index,
            "axis": axis.kind,
            "label": line.label,
            "color": line.color,
            "group": line.group or line.label,
            "steps": picked.steps,
            "values": [_value(chart, line, i) for i in kept],
        }
    )
    attributes = f'data-line="{index}" class="line c{line.color} {line.form}"'
    group = element(
        "g",
        band(line.spread, kept, line.color, at) if line.spread is not None else None,
        Html(f'<path {attributes} d="{d}"/>'.encode()),
        _dots(line, kept, place),
        data_group=line.group or line.label,
    )
    return group


def _value(chart: Chart, line: Line, i: int) -> str:
    value = chart.write(line.curve.values[i])
    return value if line.spread is None else f"{value} ({line.spread.words(i, chart.write)})"


def thinned(x: Sequence[float], values: Sequence[float], chart: Chart, axis: Axis) -> list[int]:
    """The indices of the points that are drawn."""
    order = sorted(range(len(x)), key=x.__getitem__) if any(a > b for a, b in itertools.pairwise(x)) else range(len(x))
    xs, ys = [x[i] for i in order], [values[i] for i in order]
    kept = thin(xs, ys, chart.columns)
    places = [chart.scale(ys[i]) for i in kept]
    straight = straightened([axis.scale(xs[i]) for i in kept], places, 0.0005)
    return [order[kept[i]] for i in straight]


def _dots(line: Line, kept: Sequence[int], place: Callable[[int], tuple[int, int]]) -> Html | None:
    if line.form != "dots" and len(kept) > 1:
        return None
    if len(kept) > 60:
        return None
    d = "".join(f"M{place(i)[0]} {place(i)[1]}h0" for i in kept)  # round ends of lines without length
    return Html(f'<path class="dots c{line.color}" d="{d}"/>'.encode())


def _bands(chart: Chart, axis: Axis) -> list[Html]:
    out = []
    for kind, begin, end, style in chart.bands:
        left, right = (round(SIZE * axis.scale(value)) for value in (begin, end))
        if kind == axis.kind and right > left:
            out.append(Html(f'<path class="band {style}" d="M{left} 0H{right}V{SIZE}H{left}z"/>'.encode()))
    return out


def _ends(chart: Chart) -> list[Html]:
    """The last value of each line beside its end, moved apart where they would overlap."""
    lines = [line for line in chart.lines if line.form in ("line", "dots", "wide") and len(line.curve)]
    if not chart.ends or len(lines) > 8:
        return []
    places = sorted((chart.scale(line.curve.values[-1]), i) for i, line in enumerate(lines))
    ys = [y for y, _ in places]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + 0.075)
    if ys and ys[-1] > 1:
        ys[-1] = 1.0
        for i in range(len(ys) - 2, -1, -1):
            ys[i] = min(ys[i], ys[i + 1] - 0.075)
    out = []
    for y, (_, i) in zip(ys, places, strict=True):
        line = lines[i]
        text = chart.write(line.curve.values[-1])
        style = f"bottom:{_percent(y)};" + _positions(chart, line)
        out.append(element("span", text, class_=f"end c{line.color}", style=style, data_group=line.group or line.label))
    return out


def _positions(chart: Chart, line: Line) -> str:
    """Where a line ends on each axis, as variables of its style."""
    out = ""
    for axis in chart.axes:
        x = line.curve.epochs[-1]
        if axis.kind == "time":
            x = (line.curve.times[-1] - (line.began or 0.0)) / axis.unit
        if not math.isnan(x):  # its time may not be known
            out += f"--{axis.kind}:{_percent(axis.scale(x))};"
    return out


def _marks(chart: Chart) -> list[Html]:
    out = []
    for i, (mark, began) in enumerate(chart.marks):
        style = ""
        for axis in chart.axes:
            if axis.kind == "time":
                style += f"--time:{_percent(axis.scale((mark.time - (began or mark.time)) / axis.unit))};"
            else:
                style += f"--epochs:{_percent(axis.scale(mark.epoch))};"
        out.append(
            element(
                "button",
                element("span", f"{mark.title}. {mark.detail}", class_="hidden") if chart.is_first else None,
                type="button",
                class_=f"mark {mark.kind}{' dense' if len(chart.marks) > MANY_MARKS else ''}",
                style=style,
                data_mark=i,
                tabindex=None if chart.is_first else -1,
                aria_hidden=None if chart.is_first else "true",
            )
        )
    return out
