"""The report of several runs: their curves in the same charts, a ranking, and what differs in their settings."""

from collections.abc import Sequence

from jobs.page.comparison import differing_settings, ranked, sameness
from jobs.page.document import curves_section, document
from jobs.page.elements import Html, element, joined
from jobs.page.interruptions import describe_interruptions, interruptions
from jobs.page.learning_curves import COLORS, charts_of_several, last
from jobs.page.run_data import RunData
from jobs.page.scales import number, percent
from jobs.page.seed_table import seed_table
from jobs.page.series import Series, series_of
from vit.run.counts import counted
from vit.run.progress import format_duration

FEW_RUNS = 5  # up to so many, each has a column in the table of settings; of more, each has a row


def runs_page(runs: Sequence[RunData], over: RunData | None = None, title: str = "", each: bool = False) -> bytes:
    """The page; `over` is drawn below the others and compared with them.

    Runs that differ only in their seed are drawn as one line, unless `each` is to be seen, or `over` is given.
    """
    everything = [*runs, *([over] if over is not None and over not in runs else [])]
    drawn = series_of(everything, each or over is not None)
    below = next((series for series in drawn if series.runs[0] is over), None)
    charts = charts_of_several(drawn, below)
    legend = element("div", *(_legend_entry(series, drawn, over) for series in drawn), class_="legend plain")
    body = joined(
        _header(everything, over, runs, title or _title(everything)),
        curves_section(charts, before=legend),
        _ranking(everything, drawn, over),
        _settings(everything),
    )
    return document(title or _title(everything), body, charts)


def _title(runs: Sequence[RunData]) -> str:
    return " and ".join(run.name for run in runs) if len(runs) <= 2 else counted(len(runs), "run")


def _header(runs: Sequence[RunData], over: RunData | None, compared: Sequence[RunData], title: str) -> Html:
    states = [run.status.state for run in runs]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    same = [
        f"{run.name}: {found.describe(over.name)}"
        for run in compared
        if over is not None and run is not over and (found := sameness(run, over)) is not None
    ]
    problems = [
        f"{run.name}: {text}" for run in runs for text in ([run.status.why] if run.status.why else []) + run.problems
    ]
    return element(
        "header",
        element("h1", title),
        element("p", counted, class_="when"),
        *(element("p", text, class_="finding") for text in same),
        *(element("p", text, class_="problem") for text in problems),
    )


def _swatch(run: RunData, drawn: Sequence[Series], over: RunData | None = None) -> Html:
    number = next(i for i, series in enumerate(drawn) if any(one is run for one in series.runs))
    return element("i", class_="swatch c0 wide" if run is over else f"swatch c{1 + number % COLORS}")


def _legend_entry(series: Series, drawn: Sequence[Series], over: RunData | None) -> Html:
    swatch = _swatch(series.runs[0], drawn, over)
    return element("button", swatch, series.name, type="button", aria_pressed="true", data_toggles=series.name)


def _ranking(runs: Sequence[RunData], drawn: Sequence[Series], over: RunData | None) -> Html:
    heads = (
        "run",
        "state",
        "best top-1",
        "at step",
        "loss",
        "validation loss",
        "steps",
        "on the nodes",
        "goodput",
        "interruptions",
    )
    rows = []
    for run in ranked(runs):
        loss, val_loss = last(run.curves.get("loss")), last(run.curves.get("val_loss"))
        cells = (
            run.status.state,
            percent(run.best[1], 2) if run.best else "–",
            f"{run.best[0]:,}" if run.best else "–",
            number(loss) if loss is not None else "–",
            number(val_loss) if val_loss is not None else "–",
            f"{run.step:,}" if run.step is not None else "–",
            format_duration(run.time.on_nodes) if run.time.on_nodes > 0 else "–",
            percent(run.time.goodput) if run.time.goodput is not None else "–",
            describe_interruptions(interruptions(run)) or "none",
        )
        name = element("td", _swatch(run, drawn, over), run.name, class_="text")
        rows.append(element("tr", name, *(element("td", cell) for cell in cells)))
    head = element("thead", element("tr", *(element("th", text) for text in heads)))
    table = element("table", head, element("tbody", *rows), class_="numbers")
    scrolled = element("div", table, class_="scroll")
    return element("section", element("h2", "Ranking"), seed_table(drawn), scrolled, id="ranking")


def _settings(runs: Sequence[RunData]) -> Html:
    differing = differing_settings(runs)
    if not differing:
        known = [run for run in runs if run.settings]
        text = "All settings are the same." if len(known) == len(runs) else "The settings of a run are not known."
        return element("section", element("h2", "Settings"), element("p", text, class_="lead"), id="settings")
    names = [run.name for run in runs]
    if len(runs) <= FEW_RUNS:
        head, rows = ["setting", *names], [[name, *values] for name, values in differing.items()]
    else:
        head = ["run", *differing]
        rows = [[name, *(values[i] for values in differing.values())] for i, name in enumerate(names)]
    table = element(
        "table",
        element("thead", element("tr", *(element("th", text) for text in head))),
        element(
            "tbody",
            *(element("tr", element("th", row[0]), *(element("td", text or "–") for text in row[1:])) for row in rows),
        ),
        class_="numbers settings-table",
    )
    same = "All other settings are the same, apart from paths and threads."
    return element(
        "section",
        element("h2", "What differs in the settings"),
        element("div", table, class_="scroll"),
        element("p", same, class_="note"),
        id="settings",
    )
