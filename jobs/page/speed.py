"""How long a step takes on each rank: percentiles as a table with a picture of their range."""

from jobs.page.elements import Html, element
from jobs.page.run_data import RunData
from jobs.page.scales import number
from jobs.page.step_times import SHARES, RankTimes

MANY_RANKS = 16  # with more, the table has the slowest ones


def speed_section(run: RunData) -> Html | None:
    """None if no step times are recorded."""
    ranks = run.step_times
    if not ranks:
        return None
    shown = ranks if len(ranks) <= MANY_RANKS else sorted(ranks, key=lambda r: -r.percentiles[1])[:MANY_RANKS]
    high = max(times.percentiles[-1] for times in ranks) * 1.05
    unit, factor = ("ms", 1e3) if high < 1 else ("s", 1.0)
    heads = ["rank", "steps", *(f"{100 * share:.0f}%" if share != 0.5 else "median" for share in SHARES), "longest"]
    return element(
        "section",
        element("h2", "Step times"),
        element(
            "p",
            f"In {unit}, from the end of a step to that of the next one as the host sees it, which may be some steps "
            "ahead of its GPU; without evaluations. The bar reaches from 5% to 95% of the steps, the dot is the median,"
            " the tick 99%.",
            f" The {MANY_RANKS} slowest of {len(ranks)} ranks." if len(ranks) > MANY_RANKS else None,
            class_="lead",
        ),
        element(
            "div",
            element(
                "table",
                element(
                    "thead", element("tr", *(element("th", head) for head in heads), element("th", class_="range"))
                ),
                element("tbody", *(_row(times, high, factor) for times in shown)),
                class_="numbers",
            ),
            class_="scroll",
        ),
        id="step-times",
    )


def _row(times: RankTimes, high: float, factor: float) -> Html:
    low, median, top, tail = (100 * value / high for value in times.percentiles)
    picture = element(
        "div",
        element("i", class_="span", style=f"left:{low:.2f}%;width:{max(0.3, top - low):.2f}%"),
        element("i", class_="tail", style=f"left:{tail:.2f}%"),
        element("i", class_="dot", style=f"left:{median:.2f}%"),
        class_="range-plot",
        aria_hidden="true",
    )
    values = [*times.percentiles, times.longest]
    return element(
        "tr",
        element("td", times.rank),
        element("td", f"{times.steps:,}"),
        *(element("td", number(factor * value, 3)) for value in values),
        element("td", picture, class_="range"),
    )
