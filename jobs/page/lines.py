"""The lines and axes of a chart, and the band around the mean of several runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.page.curves import Curve
from jobs.page.elements import Html
from jobs.page.scales import Scale


@dataclass(frozen=True)
class Spread:
    """The lowest and the highest value at each point of a curve."""

    low: Sequence[float]
    high: Sequence[float]

    def words(self, i: int, write: Callable[[float], str]) -> str:
        """`0.71 to 0.73`."""
        return f"{write(self.low[i])} to {write(self.high[i])}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a chart."""

    label: str
    color: int  # 1 to 6, a color of the style sheet; 0: gray
    curve: Curve
    began: float | None  # Unix time from which its time is counted
    breaks: Sequence[float] = ()  # Unix times at which the line is interrupted
    form: str = "line"  # line, dots (with a line), faint (repeated steps, only over time), wide (below the others)
    group: str = ""  # what switches it on and off; "": its label
    spread: Spread | None = None  # of the runs of which it is the mean

    def values(self) -> list[float]:
        """All values that are drawn."""
        edges = (self.spread.low, self.spread.high) if self.spread is not None else ()
        return [value for values in (self.curve.values, *edges) for value in values]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A horizontal axis."""

    kind: str  # epochs or time
    label: str
    scale: Scale
    unit: float = 1.0  # seconds per unit of time


def band(spread: Spread, kept: Sequence[int], color: int, place: Callable[[int, float], tuple[int, int]]) -> Html:
    """A filled shape through the kept points; `place` gives the coordinates of a value at a point."""
    upper = [place(i, spread.high[i]) for i in kept]
    lower = [place(i, spread.low[i]) for i in reversed(kept)]
    d = "L".join(f"{x} {y}" for x, y in upper + lower)
    return Html(f'<path class="spread c{color}" d="M{d}z"/>'.encode())
