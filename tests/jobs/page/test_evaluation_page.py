"""The evaluation in a report: confusion matrix, accuracy of classes, confused pairs, mistakes as pictures."""

import io
from pathlib import Path

import pytest
from PIL import Image

from jobs.page.confusion import png
from jobs.page.document import run_page
from jobs.page.run_data import read_run
from tests.helpers.browser import Browser
from tests.helpers.report_runs import write_run
from tests.jobs.page.conftest import Report
from tests.jobs.page.test_page_in_browser import HTML, checks
from vit.run.evaluation_file import Evaluation, Mistake, write_evaluation


def save(folder: Path, classes: int, step: int = 100, weights: str = "last", names: str = "class {}") -> Path:
    """An evaluation of ten images of each class, one of which is taken for the next class, with two mistakes."""
    confusion = [(i, i, 9) for i in range(classes)] + [(i, (i + 1) % classes, 1) for i in range(classes)]
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(picture, "PNG")
    files = {f"mistakes/0{i}-sample-{i}.png": picture.getvalue() for i in range(2)}
    mistakes = [
        Mistake(file=file, sample=i, true=i, predicted=i + 1, probability=0.987, true_probability=0.004)
        for i, file in enumerate(files)
    ]
    evaluation = Evaluation(
        step=step,
        weights=weights,
        data="data/val.beton",
        data_sha256="",
        images=10 * classes,
        skipped=1,
        limit=None,
        top1=0.9,
        top5=0.99,
        loss=0.4,
        classes=[f"n{i}" for i in range(classes)],
        names=[names.format(i) for i in range(classes)],
        confusion=sorted(confusion),
        mistakes=mistakes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return write_evaluation(folder, evaluation, files)


@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize("width", [1180, 375])
def test_few_and_many_classes_are_shown_at_every_width(
    browser: Browser, tmp_path: Path, classes: int, width: int
) -> None:
    """A table of 3 classes, a picture of 1,000; the mistakes are visible pictures; without a run."""
    folder = save(tmp_path / "evaluation", classes)
    page_file = tmp_path / "report.html"
    page_file.write_bytes(run_page(read_run(folder)))
    with browser.page(page_file, width, phone=width < 500) as page:
        checks(page)
        cells = page.evaluate("[...document.querySelectorAll('.confusion tbody td')].map(e => e.textContent)")
        assert cells == ([] if classes > 3 else ["90", "10", "", "", "90", "10", "10", "", "90"])
        wide = "[...document.querySelectorAll('{}')].map(e => e.naturalWidth)"
        assert page.evaluate(wide.format(".gallery img")) == [64, 64]
        assert page.evaluate(wide.format(".matrix")) == ([250] if classes > 3 else [])
        assert page.evaluate("document.querySelector('.gallery').innerText").split("\n")[:3] == [
            "class 1 98.7%",
            "class 0 0.4%",
            "image 0",
        ]
    assert page_file.stat().st_size < 1e6


def test_names_of_classes_are_never_html(browser: Browser, tmp_path: Path) -> None:
    """Elements and scripts in them are shown as they are."""
    folder = save(tmp_path / "evaluation", 3, names=HTML.replace("{", "") + "{}")
    (tmp_path / "report.html").write_bytes(run_page(read_run(folder)))
    with browser.page(tmp_path / "report.html") as page:
        checks(page)
        assert page.evaluate("document.title") == folder.name
        assert page.evaluate("document.querySelector('.confusion th span').textContent") == HTML + "0"


def test_the_newest_evaluation_of_a_run_is_shown_and_all_scores(tmp_path: Path, report: Report) -> None:
    """That of the EMA, if both have the same step; pictures are written beside the page."""
    run = write_run(tmp_path / "run")
    for step, weights in [(100, "ema"), (200, "last"), (200, "ema")]:
        save(run / "evaluation", 3, step, weights)
    done = report(run)
    assert (done.returncode, done.stderr) == (0, "")
    names = {Path(line).name for line in done.stdout.splitlines()}
    assert names == {"report.html", "curves.png", "time.png", "confusion.png"}
    page = (run / "report.html").read_text()
    assert "EMA of the weights of step 200. 1 damaged image was left out." in page
    assert page.count("<td>90.00%</td>") == 3


def test_a_damaged_evaluation_and_a_missing_picture_are_named(tmp_path: Path) -> None:
    """The rest of the run is shown."""
    run = write_run(tmp_path / "run")
    whole, damaged = save(run / "evaluation", 3, 100), save(run / "evaluation", 3, 200)
    (damaged / "evaluation.json").write_text('{"format": ')
    (whole / "mistakes/00-sample-0.png").unlink()
    (whole / "mistakes/01-sample-1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = read_run(run, {})
    assert len(data.problems) == 1 and "evaluation.json is damaged" in data.problems[0]
    page = run_page(data).decode()
    assert page.count("no picture") == 2
    assert 'id="loss"' in page


def test_a_matrix_is_a_valid_picture_of_opacities() -> None:
    """As other programs read it."""
    image = Image.open(io.BytesIO(png([bytes([0, 255]), bytes([128, 1])]))).convert("RGBA")
    assert list(image.getchannel("A").tobytes()) == [0, 255, 128, 1]
