"""`vit.predict --samples` classifies images of a data set, and `--sheet` draws their attention maps in one picture."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import NAMES, make_finished_run
from tests.helpers.photographs import crops
from tests.helpers.write_command import write_beton
from vit import predict
from vit.attention_figure import Row, contact_sheet
from vit.augment.pipeline import normalize
from vit.data.chosen_samples import choose_samples
from vit.data.loader import ValData
from vit.distributed.world import SINGLE_RANK


@pytest.fixture(scope="module")
def run(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights for Fashion-MNIST's ten classes."""
    folder = tmp_path_factory.mktemp("samples") / "run"
    make_finished_run(folder, small_config(betons))
    return folder


def run_predict(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = predict.main([*map(str, args), "--device", "cpu"])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("count", [1, 3, 10, 25, 10**6])
def test_samples_are_of_as_many_classes_as_possible(count: int) -> None:
    """Each at most once, classes that have some left equally often, sorted by class; other ones by another seed."""
    labels = np.repeat(np.arange(10), [50, 3, 9, 9, 9, 9, 9, 0, 1, 9])
    labels = np.random.default_rng(1).permutation(labels)
    chosen = choose_samples(labels, count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(labels))
    found, available = Counter(labels[chosen].tolist()), Counter(labels.tolist())
    most = max(found.values())
    assert all(found[each] in (most, most - 1) or found[each] == available[each] for each in available)
    assert labels[chosen].tolist() == sorted(labels[chosen].tolist())
    assert np.array_equal(chosen, choose_samples(labels, count))
    if count < len(labels):
        assert not np.array_equal(chosen, choose_samples(labels, count, seed=1))


def test_samples_have_the_predictions_of_evaluation_and_their_true_classes(
    run: Path, betons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default of the run's own validation set; in the text with the true class and how many are right."""
    cfg = small_config(betons)
    code, out, err = run_predict(capsys, run, "--samples", 12, "--json")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    samples = [answer["sample"] for answer in answers]
    data = ValData(cfg, SINGLE_RANK)
    model = make_finished_run(run.parent / "again", cfg).ema
    assert model is not None
    pixels = torch.from_numpy(data.pixels(np.array(samples)))
    with torch.inference_mode():
        best = model(normalize(pixels, cfg.augment)).softmax(dim=1).max(dim=1)
    truths = [NAMES[label] for label in data.beton.labels[samples].tolist()]
    assert [answer["true"] for answer in answers] == truths
    assert [answer["predictions"][0]["class"] for answer in answers] == [NAMES[i] for i in best.indices.tolist()]
    found = [answer["predictions"][0]["probability"] for answer in answers]
    assert found == pytest.approx(best.values.tolist(), abs=2e-6)
    lines = run_predict(capsys, run, "--samples", 12, "--data", cfg.data.val, "--top", 1)[1].splitlines()
    names = [f"{cfg.data.val}, sample {i}: {name}" for i, name in zip(samples, truths, strict=True)]
    assert lines[:-1:2] == names
    right = sum(truth == NAMES[i] for truth, i in zip(truths, best.indices.tolist(), strict=True))
    assert lines[-1] == f"{right} of 12 images right"


def test_a_damaged_sample_is_reported_and_the_others_are_predicted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr with its number, exit code 1; a data set with a class that the model lacks is refused."""
    for name in NAMES:
        folder = tmp_path / "photos" / name.replace("/top", "")
        folder.mkdir(parents=True)
        for i, content in enumerate(crops(0, 1, 0)):
            (folder / f"{i}.jpg").write_bytes(content)
    path = write_beton(tmp_path / "photos.beton", "imagefolder", tmp_path / "photos")
    capsys.readouterr()
    code, out, err = run_predict(capsys, run, "--samples", 10, "--data", path)
    assert (code, out) == (2, "") and err.startswith("vit.predict: ") and "'T-shirt'" in err
    manifest = json.loads(path.with_name("photos.beton.json").read_text())
    manifest["classes"][manifest["classes"].index("T-shirt")] = "T-shirt/top"
    path.with_name("photos.beton.json").write_text(json.dumps(manifest))
    size = path.stat().st_size
    with path.open("r+b") as file:
        content = file.read()
        start = content.index(b"\xff\xd8\xff") + 200  # in the header of the first JPEG
        file.seek(start)
        file.write(bytes(3000))
    assert path.stat().st_size == size
    code, out, err = run_predict(capsys, run, "--samples", 10, "--data", path, "--top", 1)
    assert code == 1 and len(err.splitlines()) == 1 and err.startswith(f"vit.predict: {path}, sample ")
    assert len(out.splitlines()) == 2 * 9 + 1 and out.splitlines()[-1].endswith(" of 9 images right")


def test_a_sheet_shows_all_images_with_true_and_predicted_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each sample, with the image, the rollout and two heads; its folder is created."""
    sheet = tmp_path / "new" / "attention.png"
    code, out, _ = run_predict(capsys, run, "--samples", 4, "--sheet", sheet, "--attention", tmp_path / "maps")
    assert code == 0 and out.splitlines()[-1] == f"attention maps of all images: {sheet}"
    with Image.open(sheet) as picture:
        assert picture.size == (238 + 4 * 168, 88 + 4 * 168)
        row = np.asarray(picture.convert("RGB"))[88:248, 238:398]
    assert np.ptp(row) > 0  # the first image
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert len(names) == 4 and names[0].startswith("000-val-")
    photo = tmp_path / "my-cat.jpg"
    photo.write_bytes(crops(0, 1, 0)[0])
    code, out, _ = run_predict(capsys, run, photo, "--sheet", sheet, "--json")
    assert code == 0 and len(out.splitlines()) == 1
    with Image.open(sheet) as picture:
        assert picture.size == (238 + 4 * 168, 88 + 168)


def test_the_text_of_a_sheet_says_what_is_right_and_never_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With long names of classes and twelve heads; a mark, not only a color, tells what is wrong."""
    draw, boxes, texts = ImageDraw.ImageDraw.text, [], []

    def record(self: ImageDraw.ImageDraw, position: tuple[float, float], text: str, *args: Any, **options: Any) -> None:
        texts.append(text)
        boxes.append(self.textbbox(position, text, args[1], anchor=options["anchor"]))
        draw(self, position, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    pixels, maps = np.zeros((28, 28, 3), np.uint8), np.random.default_rng(0).random((13, 4, 4), np.float32)
    rows = [
        Row(pixels, maps, "Staffordshire Bull Terrier", 0.5432, "Staffordshire Bull Terrier", "sample 7"),
        Row(pixels, maps, "Cat", 1.0, "American Pit Bull\nTerrier of a very long name", "sample 8"),
        Row(pixels, maps, "Cat", 0.9, None, "my-cat.jpg"),
    ]
    sheet = contact_sheet("runs/pets: 1 of 2 images right", rows)
    assert {"runs/pets: 1 of 2 images right", "rollout", "head 12", "✓ 54.3%", "✗ 100.0%", "90.0%"} <= set(texts)
    assert "true: American Pit Bull Terr…" in texts or any(t.startswith("true: American Pit Bull") for t in texts)
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and top >= 0 and right <= sheet.width and bottom <= sheet.height
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, texts[i]
    for left, _, right, _ in boxes[2 + 14 :]:
        assert left >= 0 and right <= 238  # beside the tiles


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give images after the run folder, or --samples N"),
        (["a.png", "--samples", "3"], "give images after the run folder, or --samples N"),
        (["--samples", "0"], "--samples must be at least 1, not 0"),
        (["a.png", "--data", "x.beton"], "--data is the data set of --samples N"),
        (["--samples", "3", "--seed", "-1"], "--seed must not be negative, not -1"),
        (["--samples", "65", "--sheet", "a.png"], "--sheet draws at most 64 images, not 65; --attention draws each"),
        (["--samples", "3", "--sheet", "a.gif"], "--sheet a.gif: the name of the picture must end with .png"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2, before the model is loaded."""
    with pytest.raises(SystemExit) as ended:
        predict.main([str(run), *arguments])
    assert ended.value.code == 2 and f"vit.predict: {message}" in capsys.readouterr().err


def test_samples_of_a_data_set_that_is_gone_are_refused_in_one_line(
    run: Path, betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its name, also if it is the run's own validation set."""
    code, out, err = run_predict(capsys, run, "--samples", 3, "--data", tmp_path / "none.beton")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and f"{tmp_path}/none.beton" in err
    cfg = small_config(betons)
    make_finished_run(tmp_path / "run", replace(cfg, data=replace(cfg.data, val=tmp_path / "gone.beton")))
    code, out, err = run_predict(capsys, tmp_path / "run", "--samples", 3)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and f"{tmp_path}/gone.beton" in err
