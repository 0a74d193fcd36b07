"""The whole page: one HTML file that needs no other file and no network."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.page.elements import Html, data, element, joined
from jobs.page.estimate import estimate_section
from jobs.page.evaluation import evaluation_section
from jobs.page.learning_curves import charts_of_run
from jobs.page.line_chart import Chart, draw
from jobs.page.rank_times import rank_times_section
from jobs.page.recipe import environment_section, recipe_section
from jobs.page.run_data import RunData
from jobs.page.speed import speed_section
from jobs.page.summary import run_header
from jobs.page.timeline import attempts_section, time_section

FOLDER = Path(__file__).parent


def run_page(run: RunData, title: str = "") -> bytes:
    """The report of one run; its title is the name of the run, if no other is given."""
    charts = charts_of_run(run)
    body = joined(
        run_header(run, title),
        curves_section(charts, len(run.repeated) > 0),
        evaluation_section(run),
        attempts_section(run),
        time_section(run),
        estimate_section(run),
        speed_section(run),
        rank_times_section(run),
        recipe_section(run),
        environment_section(run),
    )
    return document(title or run.name, body, charts)


def curves_section(charts: Sequence[Chart], repeated: bool = False, before: Html | None = None) -> Html | None:
    """All charts, with a switch between epochs and time."""
    if not charts:
        return None
    drawn = [draw(replace(chart, is_first=i == 0)) for i, chart in enumerate(charts)]  # all have the same marks
    timed = next((axis for axis in charts[0].axes if axis.kind == "time"), None)
    marks = {mark.kind for chart in charts for mark, _ in chart.marks}
    keys = {"stop": "stopped and saved", "failure": "failed or killed", "rollback": "rolled back"}
    switch = (
        element(
            "div",
            *(
                element("button", label, type="button", aria_pressed=pressed, data_axis=kind)
                for kind, label, pressed in (("epochs", "epochs", "true"), ("time", timed.label, "false"))
            ),
            class_="switch",
            role="group",
            aria_label="horizontal axis",
        )
        if timed
        else None
    )
    return element(
        "section",
        element("div", element("h2", "Learning curves"), switch, class_="heading"),
        element(
            "div",
            *(
                element("span", element("i", class_=f"key {kind}"), label)
                for kind, label in keys.items()
                if kind in marks
            ),
            element("span", element("i", class_="key repeated"), "repeated steps") if repeated else None,
            class_="legend plain",
        )
        if marks
        else None,
        before,
        element("div", *drawn, class_="charts"),
        id="curves",
        class_="show-epochs",
    )


def document(title: str, body: Html, charts: Sequence[Chart]) -> bytes:
    """A page with its style, its script and the values of its charts."""
    marks = [(mark.title, mark.detail) for mark, _ in charts[0].marks] if charts else []
    values = {"marks": marks, "charts": {chart.id: chart.points for chart in charts}}
    style, script = ((FOLDER / name).read_bytes() for name in ("style.css", "page.js"))
    written = time.strftime("%Y-%m-%d %H:%M")
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name_="color-scheme", content="light dark"),
            element("title", title),
            Html(b"<style>" + style + b"</style>"),
        ),
        element(
            "body",
            element("main", body, element("footer", f"Written on {written} by jobs/report.py.")),
            element("div", id="tip", role="status", hidden=True),
            data(values, "values"),
            Html(b"<script>" + script + b"</script>"),
        ),
        lang="en",
    )
    return b"<!DOCTYPE html>\n" + page + b"\n"
