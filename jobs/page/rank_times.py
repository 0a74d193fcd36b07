"""What each rank's own part of a step took, over the whole run, and when ranks were slow: a table with bars."""

from collections.abc import Sequence

from jobs.page.elements import Html, element
from jobs.page.rank_totals import RankTotals
from jobs.page.run_data import RunData
from jobs.page.scales import date, duration, number
from vit.history.slow_ranks import SlowTime, slow_times
from vit.run.rank_log import describe

MANY_RANKS = 16  # with more, the table has the slowest ones
NEWEST = 20  # times of slow ranks that are listed
# What is shown of FIELDS, in the order of a step, and its color.
COLUMNS = {"data": "images", "augment": "augmentation", "forward_backward": "forward, backward", "update": "update"}
COLORS = {"data": "t-data", "augment": "t-checkpoint", "forward_backward": "t-step", "update": "t-compile"}
WAIT = "sum and wait"


def rank_times_section(run: RunData) -> Html | None:
    """None if nothing was measured: a single rank, or a version that did not."""
    ranks = run.rank_times
    slow = slow_times(run.events)
    if not ranks and not slow:
        return None
    shown = ranks if len(ranks) <= MANY_RANKS else sorted(ranks, key=lambda each: -each.ratio)[:MANY_RANKS]
    return element(
        "section",
        element("h2", "Ranks"),
        element(
            "p",
            "What a rank's own part of a step takes, on average. All ranks take the same time for a step: the others "
            "wait in the sum for the one whose part takes longest. The ratio is that of a step, if all ranks were like "
            "this one, to the median rank's. From checks.slow_rank_ratio on a rank is reported as slow.",
            f" The {MANY_RANKS} slowest of {len(ranks)} ranks." if len(ranks) > MANY_RANKS else None,
            class_="lead",
        ),
        _table(shown) if shown else None,
        element("ul", *(element("li", _described(each)) for each in slow[-NEWEST:]), class_="notes") if slow else None,
        id="ranks",
    )


def _table(ranks: Sequence[RankTotals]) -> Html:
    whole = max(sum(each.seconds[name] for name in (*COLUMNS, "wait")) / each.steps for each in ranks) or 1.0
    unit, factor = ("ms", 1e3) if whole < 1 else ("s", 1.0)
    keys = [element("span", element("i", class_=f"swatch {COLORS[name]}"), label) for name, label in COLUMNS.items()]
    heads = ["rank", "node", "steps", *COLUMNS.values(), WAIT, "ratio"]
    head = element("tr", *(element("th", name) for name in heads), element("th", class_="range"))
    return element(
        "div",
        element("div", *keys, element("span", f"in {unit}"), class_="legend plain"),
        element(
            "table",
            element("thead", head),
            element("tbody", *(_row(each, whole, factor) for each in ranks)),
            class_="numbers",
        ),
        class_="scroll",
    )


def _row(each: RankTotals, whole: float, factor: float) -> Html:
    step = {name: value / each.steps for name, value in each.seconds.items()}
    bars, at = [], 0.0
    for name in COLUMNS:
        width = 100 * step[name] / whole
        if width:
            bars.append(element("i", class_=COLORS[name], style=f"left:{at:.2f}%;width:{width:.2f}%"))
        at += width
    return element(
        "tr",
        element("td", each.rank),
        element("td", each.node),
        element("td", f"{each.steps:,.0f}"),
        *(element("td", number(factor * step[name], 3)) for name in (*COLUMNS, "wait")),
        element("td", f"{each.ratio:.2f}"),
        element("td", element("div", *bars, class_="bars", aria_hidden="true"), class_="range"),
    )


def _described(slow: SlowTime) -> str:
    when = date(slow.began, "%Y-%m-%d %H:%M")
    if slow.ended is None:
        return f"{when}: {describe(slow.event)}; it still is"
    end = "until it recovered" if slow.recovered else "to the end of its attempt"
    return f"{when}: {describe(slow.event)}; for {duration(max(0.0, slow.ended - slow.began))}, {end}"
