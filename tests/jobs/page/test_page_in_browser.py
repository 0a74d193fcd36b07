"""Reports in headless Chromium: nothing fails, nothing is empty, nothing is cut off, and the mouse shows causes."""

import re
from functools import partial
from pathlib import Path

import pytest

from jobs.page.document import run_page
from jobs.page.run_data import read_run
from jobs.page.runs_page import runs_page
from tests.helpers.browser import Browser, Page
from tests.helpers.report_runs import CAUSE, ESTIMATED, curve, ledger, write_lines, write_run

HTML = """<img src=x onerror="document.title='attacked'"></script><script>document.title='attacked'</script>'&amp;"""
CHARTS = ("loss", "top1", "lr", "grad-norm", "images")


@pytest.fixture(scope="module")
def page_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of one run."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "vit_b16", events=[ESTIMATED, *ledger()])
    (folder / "report.html").write_bytes(run_page(read_run(folder)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def page_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of seven runs."""
    parent = tmp_path_factory.mktemp("sweep")
    runs = []
    for i in range(7):
        run = write_run(parent / f"lr={i}e-3,seed=0,a_setting_with_a_long_name=0", curve(partial(loss, i)))
        text = (run / "config.yaml").read_text().replace("lr: 0.001", f"lr: 0.00{i + 1}")
        (run / "config.yaml").write_text(text)
        runs.append(read_run(run))
    (parent / "report.html").write_bytes(runs_page(runs))
    return parent / "report.html"


def loss(run: int, step: int) -> float:
    """The curve of one of several runs."""
    return 2 / (step + run) ** 0.1


def checks(page: Page) -> None:
    """What holds for every page."""
    assert page.errors() == []
    assert page.requests() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
    cut_off = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .hidden, svg, .bars, .stack')
        && e.getBoundingClientRect().width && (e.getBoundingClientRect().right > innerWidth + 1
        || e.getBoundingClientRect().left < -1)).map(e => e.outerHTML.slice(0, 200))"""
    assert page.evaluate(cut_off) == []


@pytest.mark.parametrize(("width", "dark"), [(1180, False), (1180, True), (375, False), (375, True)])
def test_every_chart_has_lines_at_every_width_light_and_dark(
    browser: Browser, page_of_a_run: Path, page_of_runs: Path, width: int, dark: bool
) -> None:
    """No error, no request, nothing wider than the window; every chart has lines of more than 50 pixels."""
    for path in (page_of_a_run, page_of_runs):
        with browser.page(path, width, dark=dark, phone=width < 500) as page:
            checks(page)
            for name in CHARTS:
                box = f"document.querySelector('#{name} .by-epochs .line').getBoundingClientRect()"
                assert page.evaluate(f"{box}.width") > 50
                assert page.evaluate(f"{box}.height") > 3 or name == "images"
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == dark


def test_the_table_of_the_estimate_has_a_row_for_each_figure(browser: Browser, page_of_a_run: Path) -> None:
    """Estimated, as it came, and the ratio; all of it is visible on a phone too."""
    with browser.page(page_of_a_run, 375, phone=True) as page:
        cells = "[...document.querySelectorAll('#estimate tr')].map(row => [...row.cells].map(cell => cell.innerText))"
        head, *rows = page.evaluate(cells)
        assert head == ["", "estimated", "came", "ratio"]
        assert [row[0] for row in rows] == ["images/s", "time on the nodes", "GPU-hours", "queue"]
        assert all(text for row in rows for text in row)
        box = "document.querySelector('#estimate table').getBoundingClientRect()"
        assert page.evaluate(f"{box}.width") <= 375 and page.evaluate(f"{box}.height") > 80


def test_the_mouse_on_a_mark_shows_why_the_run_was_interrupted(browser: Browser, page_of_a_run: Path) -> None:
    """And the values of the curves at that step; outside of the chart nothing is shown."""
    with browser.page(page_of_a_run) as page:
        page.move_mouse(*page.middle("#loss .mark.failure"))
        tip = page.evaluate("document.getElementById('tip').innerText")
        assert f"rank 1 on n1: {CAUSE}" in tip
        assert "100 steps repeated" in tip
        assert re.search(r"training\s+0\.\d{3}", tip)
        page.move_mouse(*page.middle("#loss .mark.stop"))
        assert "preempted" in page.evaluate("document.getElementById('tip').innerText")
        page.move_mouse(*page.middle("h1"))
        assert page.evaluate("document.getElementById('tip').hidden")
        assert page.errors() == []


def test_curves_can_be_shown_over_time_and_switched_off(browser: Browser, page_of_a_run: Path) -> None:
    """The axis changes from epochs to minutes; a click in the legend hides a curve."""
    with browser.page(page_of_a_run) as page:
        shown = "[...document.querySelectorAll('#loss .x-title')].filter(e => e.offsetParent).map(e => e.textContent)"
        assert page.evaluate(shown) == ["epoch"]
        page.click("[data-axis=time]")
        assert page.evaluate(shown) == ["minutes"]
        page.move_mouse(*page.middle("#loss .plot"))
        assert "minutes" in page.evaluate("document.getElementById('tip').innerText")
        visible = "getComputedStyle(document.querySelector('#loss .by-time [data-group=validation]')).display"
        assert page.evaluate(visible) != "none"
        page.click("#loss [data-toggles=validation]")
        assert page.evaluate(visible) == "none"
        assert page.errors() == []


def test_text_of_a_run_is_never_html(browser: Browser, tmp_path: Path) -> None:
    """Names, settings, commands, nodes and errors with elements and scripts in them are shown as they are."""
    name = HTML.replace("/", "|")  # of a folder
    run = write_run(tmp_path / name, events=ledger(cause=HTML))
    with (run / "config.yaml").open("a") as file:
        file.write(f"extra: {{{'x'}: '{HTML.replace(chr(39), '')}'}}\n")
    (run / "environment.txt").write_text(f"command: {HTML}\n{HTML}\n")
    events = ledger(cause=HTML)
    write_lines(run / "ledger.jsonl", [*events[:-1], {"event": "gave up", "time": events[-1]["time"], "why": HTML}])
    other = read_run(write_run(tmp_path / "other"))
    for content in (run_page(read_run(run)), runs_page([read_run(run), other], other)):
        (tmp_path / "report.html").write_bytes(content)
        with browser.page(tmp_path / "report.html") as page:
            checks(page)
            assert "attacked" not in page.evaluate("document.title").replace(name, "")
            assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
            assert page.evaluate(f"document.body.innerText.includes({name!r})")


@pytest.mark.parametrize("records", [0, 1])
def test_a_run_with_one_record_or_none_is_shown_with_what_there_is(
    browser: Browser, tmp_path: Path, records: int
) -> None:
    """Its attempt and settings, and a dot for the record."""
    run = write_run(tmp_path / "young", curve()[:records], ledger()[: 2 + records])
    (tmp_path / "report.html").write_bytes(run_page(read_run(run, {})))
    with browser.page(tmp_path / "report.html", 375, phone=True) as page:
        checks(page)
        text = page.evaluate("document.body.innerText")
        assert ("No step is recorded yet" in text) == (records == 0)
        assert "Attempts" in text and "depth" in text
        assert page.evaluate("document.querySelectorAll('#loss path.dots').length > 0") == (records == 1)


def test_a_page_can_be_printed(browser: Browser, page_of_a_run: Path) -> None:
    """As a PDF of a few pages."""
    with browser.page(page_of_a_run) as page:
        pdf = page.call("Page.printToPDF", printBackground=True)["data"]
        assert 20_000 < len(pdf) < 2_000_000


def test_a_keyboard_finds_the_interruptions_of_one_chart(browser: Browser, page_of_a_run: Path) -> None:
    """Tab goes from mark to mark and shows the cause of each; the same marks in the other charts are skipped."""
    with browser.page(page_of_a_run) as page:
        seen = []
        for _ in range(20):
            for kind in ("keyDown", "keyUp"):
                page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            if page.evaluate("document.activeElement.matches('.mark')"):
                seen.append(page.evaluate("document.getElementById('tip').innerText"))
        assert len(set(seen)) == 2  # the last element of the page is followed by the first one
        assert "preempted" in seen[0] and CAUSE in seen[1]
