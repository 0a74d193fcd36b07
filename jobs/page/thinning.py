"""Thins curves for drawing: a picture of them shows no difference."""

from collections.abc import Sequence


def thin(x: Sequence[float], y: Sequence[float], columns: int) -> list[int]:
    """The indices of the points to draw: in each of `columns` equal parts of the x axis the first, last, lowest and
    highest point.  `x` must not decrease.
    """
    if len(x) <= 2 * columns or x[-1] <= x[0]:
        return list(range(len(x)))
    width = (x[-1] - x[0]) / columns
    kept: list[int] = []
    begin = 0
    for column in range(columns):
        edge = x[0] + (column + 1) * width
        end = begin
        low = high = begin
        while end < len(x) and (x[end] < edge or column == columns - 1):
            if y[end] < y[low]:
                low = end
            if y[end] > y[high]:
                high = end
            end += 1
        if end > begin:
            kept += sorted({begin, low, high, end - 1})
        begin = end
    return kept


def column_means(x: Sequence[float], y: Sequence[float], columns: int) -> list[tuple[int, float]]:
    """For each of `columns` equal parts of the x axis that has points: the index of its middle one, the mean of y."""
    if not x or x[-1] <= x[0]:
        return []
    out = []
    begin = 0
    for column in range(columns):
        edge = x[0] + (column + 1) * (x[-1] - x[0]) / columns
        end = len(x) if column == columns - 1 else begin
        while end < len(x) and x[end] < edge:
            end += 1
        if end > begin:
            out.append(((begin + end) // 2, sum(y[begin:end]) / (end - begin)))
        begin = end
    return out


def straightened(x: Sequence[float], y: Sequence[float], tolerance: float) -> list[int]:
    """The indices of the points without those that lie on a line through their neighbors, but for `tolerance`."""
    if len(x) < 3:
        return list(range(len(x)))
    kept, start = [0], 0
    low, high = float("-inf"), float("inf")  # the slopes from the last kept point that pass all points since
    for i in range(1, len(x)):
        run = x[i] - x[start]
        if run <= 0:
            slope_low, slope_high = float("inf"), float("-inf")
        else:
            slope_low, slope_high = (y[i] - tolerance - y[start]) / run, (y[i] + tolerance - y[start]) / run
        slope = (y[i] - y[start]) / run if run > 0 else float("nan")
        if not low <= slope <= high:
            if kept[-1] != i - 1:
                kept.append(i - 1)
            start = kept[-1]
            run = x[i] - x[start]
            low = (y[i] - tolerance - y[start]) / run if run > 0 else float("-inf")
            high = (y[i] + tolerance - y[start]) / run if run > 0 else float("inf")
        else:
            low, high = max(low, slope_low), min(high, slope_high)
    return [*kept, len(x) - 1] if kept[-1] != len(x) - 1 else kept
