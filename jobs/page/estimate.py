"""The section that compares the estimate of a run with what came."""

from jobs.page.elements import Html, element
from jobs.page.run_data import RunData
from jobs.watch.estimate_outcome import outcome


def estimate_section(run: RunData) -> Html | None:
    """A table, and in words what the difference went to; None for a run without an estimate."""
    found = outcome(run.events, run.attempts, run.usage)
    if found is None:
        return None
    rows = [
        element(
            "tr",
            element("td", figure.name),
            element("td", figure.estimated),
            element("td", figure.came),
            element("td", "–" if figure.ratio is None else f"{figure.ratio:.2f}"),
        )
        for figure in found.figures
    ]
    heads = ("", "estimated", "came" if found.finished else "so far", "ratio")
    words = f"On the nodes it took {found.difference}." if found.difference else None
    return element(
        "section",
        element("h2", "Estimated and measured"),
        element("p", words, class_="lead") if words else None,
        element(
            "table",
            element("thead", element("tr", *(element("th", head) for head in heads))),
            element("tbody", *rows),
            class_="numbers narrow",
        ),
        element("p", f"Estimated when it was submitted: {found.source}.", class_="note") if found.source else None,
        id="estimate",
    )
