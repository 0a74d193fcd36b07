"""Axes: nice ticks, linear or logarithmic, and how values are written."""

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from vit.run.progress import format_duration


@dataclass(frozen=True)
class Scale:
    """Maps values to 0 … 1; logarithmic if `log`."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value is; outside of 0 … 1 if it is outside of the axis."""
        if self.log:
            return (math.log(max(value, 1e-300)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values on the axis."""
        if self.log:
            return self._powers(count)
        step = nice((self.high - self.low) / max(1, count))
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def _powers(self, count: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [
                f * 10.0**p for p in range(first, last + 1) for f in factors if self.low <= f * 10.0**p <= self.high
            ]
            if len(found) <= count + 2:
                return found
        return found[:: -(-len(found) // count)]


def nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next((f * power for f in (1, 2, 2.5, 5, 10) if f * power >= value * (1 - 1e-9)), 10 * power)


def scale_for(values: Iterable[float], zero: bool = False) -> Scale:
    """A linear scale with some space above and below the values; it begins at 0 if `zero` or if that is near."""
    found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(found), max(found)
    if high == low:
        low, high = (0.0, 2 * high or 1.0) if high >= 0 else (2 * low, 0.0)
    margin = 0.06 * (high - low)
    begins_at_zero = low >= 0 and (zero or low - margin < 0.25 * high)
    return Scale(0.0 if begins_at_zero else low - margin, high + margin)


def log_scale_for(values: Iterable[float]) -> Scale:
    """A logarithmic scale for the positive ones of the values."""
    found = [value for value in values if math.isfinite(value) and value > 0] or [0.1, 1.0]
    low, high = min(found), max(found)
    return Scale(low / 1.2, high * 1.2, log=True)


def number(value: float, digits: int = 4) -> str:
    """`0.2013`, `2,813`, `1.2e-05`: so many significant digits, none after the point of large numbers."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.{max(0, digits - 2)}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def tick_label(value: float, ticks: list[float]) -> str:
    """A tick's value, with as many digits as the ticks need."""
    if value == 0:
        return "0"
    size = max(abs(tick) for tick in ticks)
    if size < 1e-3 or (size >= 1e6):
        text = f"{value:.2e}"
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    places = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return f"{value:,.{places}f}" if places <= 4 else text


def percent(share: float, places: int = 1) -> str:
    """`86.7%`."""
    return f"{100 * share:.{places}f}%"


def duration(seconds: float) -> str:
    """Like `format_duration`, with a digit after the point below ten seconds."""
    return f"{seconds:.1f} s" if 0.05 <= seconds < 9.95 else format_duration(seconds)


def date(seconds: float, form: str) -> str:
    """A Unix time in the time zone of this machine; empty if there is no such date."""
    with suppress(OverflowError, OSError, ValueError):
        return time.strftime(form, time.localtime(seconds))
    return ""
