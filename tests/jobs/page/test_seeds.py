"""Runs that differ only in their seed: one line with a band in charts and pictures, and a table with deviations."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure

from jobs.page.document import run_page
from jobs.page.figures import draw
from jobs.page.run_data import RunData, read_run
from jobs.page.runs_page import runs_page
from jobs.page.series import series_of
from jobs.page.write import Report
from tests.helpers.browser import Browser
from tests.helpers.report_runs import curve, ledger, write_lines, write_run
from tests.jobs.page.conftest import Report as Command

SEEDS = (0, 1, 2)


def loss(seed: int, step: int) -> float:
    """The training loss of one seed: 1.0, 1.1 or 1.2 at step 1,000."""
    return 1 + 0.1 * seed + (1 - step / 1000) ** 2


def write_seed(parent: Path, seed: int, name: str = "", finished: bool = True, changes: Sequence[str] = ()) -> Path:
    """The run of one seed, with an accuracy of 0.7, 0.8 or 0.9 at its end; an unfinished one ends at step 500."""
    records = curve(partial(loss, seed))
    for record in records:
        if "val_top1" in record:
            record["val_top1"] = (0.7 + 0.1 * seed) * record["step"] / 1000
            del record["val_top1_average"]
    if not finished:
        records = [record for record in records if record["step"] <= 500]
    folder = write_run(parent / (name or f"seed={seed}"), records, ledger() if finished else ledger()[:-1])
    text = (folder / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}")
    for change in changes:
        setting = change.partition(":")[0]
        text, count = re.subn(rf"(?m)^( +){setting}: .*$", rf"\g<1>{change}", text)
        assert count == 1
    (folder / "config.yaml").write_text(text)
    return folder


def read(folders: Sequence[Path]) -> list[RunData]:
    """The runs, none of which is in Slurm's queue."""
    return [read_run(folder, {}) for folder in folders]


@pytest.fixture
def sweep(tmp_path: Path) -> list[Path]:
    """The folders of three finished runs."""
    return [write_seed(tmp_path / "vit_b16-sweep", seed) for seed in SEEDS]


def test_the_seeds_of_a_sweep_are_one_line_named_after_the_sweep_with_the_mean(sweep: list[Path]) -> None:
    """With the lowest and the highest value at each step, and the seconds since each run began."""
    runs = read(sweep)
    (series,) = series_of(runs)
    assert series.name == "vit_b16 (3 seeds)"
    losses, spread = series.curves["loss"], series.spreads["loss"]
    assert losses.steps == runs[0].curves["loss"].steps
    assert (spread.low[-1], losses.values[-1], spread.high[-1]) == pytest.approx((1.0, 1.1, 1.2))
    assert losses.times[-1] == pytest.approx(runs[0].curves["loss"].times[-1] - (runs[0].began or 0))


def test_the_page_has_bands_and_mean_and_deviation_of_loss_and_accuracy(sweep: list[Path]) -> None:
    """The deviation is that of a sample: of 0.7, 0.8 and 0.9 it is 0.1."""
    page = runs_page(read(sweep)).decode()
    assert "<td>vit_b16 (3 seeds)</td><td>80.00% ± 10.00%</td><td>80.00% ± 10.00%</td><td>1.100 ± 0.100</td>" in page
    assert page.count('data-toggles="vit_b16 (3 seeds)"') == 1
    assert page.count('<path class="spread c1"') >= 6  # losses and accuracy, over epochs and over time
    assert "1.100 (1.000 to 1.200)" in page  # what the mouse shows
    assert all(f"</i>seed={seed}</td>" in page for seed in SEEDS)  # the ranking has each run


def test_a_run_that_failed_is_counted_but_not_in_the_mean(tmp_path: Path) -> None:
    """2 of 3 seeds, up to the end; the run itself is in the ranking."""
    folders = [write_seed(tmp_path / "vit-sweep", seed, finished=seed != 2) for seed in SEEDS]
    (series,) = series_of(read(folders))
    assert series.name == "vit (2 of 3 seeds)"
    assert series.curves["loss"].steps[-1] == 1000
    assert series.curves["loss"].values[-1] == pytest.approx(1.05)
    page = runs_page(read(folders)).decode()
    assert "75.00% ± 7.07%" in page
    assert "</i>seed=2</td>" in page


def test_a_single_finished_seed_has_no_deviation(tmp_path: Path) -> None:
    """Nor a band."""
    folders = [write_seed(tmp_path / "vit-sweep", seed, finished=seed == 0) for seed in SEEDS]
    page = runs_page(read(folders)).decode()
    assert "<td>vit (1 of 3 seeds)</td><td>70.00%</td>" in page
    assert '<path class="spread' not in page


def test_while_no_seed_is_finished_the_mean_ends_at_their_last_common_step(tmp_path: Path) -> None:
    """So that it never jumps where a run ends; a run without any step does not count."""
    folders = [write_seed(tmp_path / "vit-sweep", seed, finished=False) for seed in SEEDS]
    write_lines(folders[0] / "metrics.jsonl", [r for r in curve(partial(loss, 0)) if r["step"] <= 300])
    (folders[2] / "metrics.jsonl").unlink()
    (series,) = series_of(read(folders))
    assert series.name == "vit (3 seeds, not finished)"
    assert series.curves["loss"].steps[-1] == 300
    assert "vit (3 seeds, not finished)" in runs_page(read(folders)).decode()


def test_runs_of_another_recipe_or_with_the_same_seed_stay_alone(tmp_path: Path, sweep: list[Path]) -> None:
    """Paths and intervals are not part of the recipe; one seed twice is no sample of seeds."""
    moved = write_seed(tmp_path, 3, "elsewhere", changes=["every_minutes: 77.0"])
    other = write_seed(tmp_path, 4, "other", changes=["weight_decay: 0.2"])
    assert [series.name for series in series_of(read([*sweep, moved, other]))] == [
        "seed=0, seed=1, seed=2 and 1 more (4 seeds)",
        "other",
    ]
    again = write_seed(tmp_path, 0, "again")
    assert [series.name for series in series_of(read([*sweep, again]))] == ["seed=0", "seed=1", "seed=2", "again"]


def test_two_sweeps_over_the_same_values_have_different_names(tmp_path: Path) -> None:
    """The name of the sweep's folder is put before."""
    first = [write_seed(tmp_path / "a", seed, f"lr=1e-3,seed={seed}") for seed in SEEDS]
    second = [write_seed(tmp_path / "b", s, f"lr=1e-3,seed={s}", changes=["weight_decay: 0.2"]) for s in SEEDS]
    assert [series.name for series in series_of(read([*first, *second]))] == [
        "a/lr=1e-3 (3 seeds)",
        "b/lr=1e-3 (3 seeds)",
    ]


def test_the_command_prints_the_table_and_each_run_on_request(
    tmp_path: Path, sweep: list[Path], report: Command
) -> None:
    """`--each` has no band and no table."""
    done = report(sweep[0].parent, "--out", tmp_path / "a.html")
    assert done.returncode == 0, done.stderr
    assert "vit_b16 (3 seeds)  80.00% ± 10.00%" in re.sub(" {2,}", "  ", done.stdout)
    each = report(sweep[0].parent, "--out", tmp_path / "a.html", "--each")
    assert each.returncode == 0, each.stderr
    assert "±" not in each.stdout
    page = (tmp_path / "a.html").read_text()
    assert '<path class="spread' not in page
    assert 'data-toggles="seed=1"' in page


def test_a_seed_that_cannot_be_read_is_named_and_the_others_are_drawn(
    tmp_path: Path, sweep: list[Path], report: Command
) -> None:
    """Exit code 0: its folder is shown, with its problem."""
    (sweep[1] / "metrics.jsonl").unlink()
    (sweep[1] / "metrics.jsonl").mkdir()
    for name in ("a.html", "a.png"):
        done = report(sweep[0].parent, "--out", tmp_path / name)
        assert "Traceback" not in done.stderr
        assert "vit_b16 (2 of 3 seeds)" in done.stdout
    assert "seed=1: " in (tmp_path / "a.html").read_text()


def test_the_picture_beside_a_page_counts_a_seed_without_a_curve(
    sweep: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 of 3 seeds, as on the page."""
    (sweep[1] / "metrics.jsonl").unlink()
    titles: list[str] = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **_: titles.append(text))
    Report(sweep, sweep[0].parent / "a.html", None, "light").write()
    assert [title.splitlines()[0] for title in titles] == ["vit_b16 (2 of 3 seeds)"]


def test_a_picture_has_the_validation_loss_and_bands(sweep: list[Path], axes: list[matplotlib.axes.Axes]) -> None:
    """Three panels; the last accuracy is written with its deviation."""
    draw(read(sweep), sweep[0].parent / "curves.svg", theme="dark")
    training, validation, accuracy = axes
    assert validation.get_title(loc="left") == "validation loss"
    assert [sum(isinstance(c, FillBetweenPolyCollection) for c in panel.collections) for panel in axes] == [1, 1, 1]
    box = training.collections[0].get_paths()[0].get_extents()
    assert (box.y0, box.y1) == pytest.approx((1.0, 2.18), abs=0.01)
    assert [text.get_text() for text in accuracy.texts] == ["80.0 ± 10.0%"]


def test_a_training_loss_with_mixup_is_said_not_to_be_comparable(tmp_path: Path) -> None:
    """On the page of one run and of several, and in pictures; not without mixup, CutMix and label smoothing."""
    changes = {"plain": ("mixup: 0.0", "cutmix: 0.0", "label_smoothing: 0.0"), "mixed": ("mixup: 0.2",)}
    plain, mixed = (write_seed(tmp_path, 0, name, changes=changes[name]) for name in ("plain", "mixed"))
    words = "not comparable"
    assert words in runs_page(read([plain, mixed])).decode()
    assert words in run_page(read_run(mixed, {})).decode()
    draw(read([plain, mixed]), tmp_path / "both.svg")
    assert words in (tmp_path / "both.svg").read_text()
    assert words not in run_page(read_run(plain, {})).decode()
    assert words not in runs_page(read([plain, write_seed(tmp_path, 0, "twice", changes=changes["plain"])])).decode()


@pytest.mark.parametrize("width", [1180, 375])
def test_in_a_browser_the_mouse_shows_mean_and_range_and_the_legend_hides_both(
    browser: Browser, sweep: list[Path], width: int
) -> None:
    """Line and band disappear together; nothing is cut off."""
    out = sweep[0].parent / "report.html"
    out.write_bytes(runs_page(read([*sweep, write_seed(sweep[0].parents[1], 0, "other", changes=["mixup: 0.3"])])))
    with browser.page(out, width=width) as page:
        assert page.errors() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
        page.move_mouse(*page.middle("#loss .plot"))
        assert re.search(r"vit_b16 \(3 seeds\).*\d \(\d\.\d+ to \d\.\d+\)", page.evaluate("tip.textContent"))
        shown = "getComputedStyle(document.querySelector('#loss .by-epochs .spread')).display !== 'none'"
        hidden = "document.querySelector('#loss .by-epochs .spread').closest('.off') !== null"
        assert page.evaluate(shown) is True
        page.evaluate("document.querySelector('[data-toggles^=vit_b16]').click()")
        assert page.evaluate(hidden) is True
