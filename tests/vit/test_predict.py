"""Predictions agree with evaluation, damaged images do not affect others, and attention maps are correct."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import NAMES, make_finished_run
from tests.helpers.models import SMALL, random_images, randomized
from vit import predict
from vit.attention_figure import attention_figure
from vit.augment.pipeline import normalize
from vit.data.image_input import load_image
from vit.data.loader import ValData
from vit.distributed.world import SINGLE_RANK
from vit.model.attention_maps import attention_weights, forward_with_attention, patch_maps, rollout
from vit.model.vision_transformer import VisionTransformer
from vit.prediction import Prediction


@pytest.fixture(scope="module")
def run(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights for Fashion-MNIST's ten classes."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    make_finished_run(folder, small_config(betons))
    return folder


@pytest.fixture(scope="module")
def images(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty images of the validation set as PNG files."""
    beton = ValData(small_config(betons), SINGLE_RANK).beton
    folder = tmp_path_factory.mktemp("images")
    out = []
    for i in range(20):
        content = beton.storage.fetch(beton.offset[i : i + 1], beton.size[i : i + 1])
        raw = content[0][int(content[1][0]) :][: int(beton.size[i])].reshape(28, 28, 3)
        out.append(folder / f"{i}.png")
        Image.fromarray(raw).save(out[-1])
    return out


def run_predict(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = predict.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_probabilities_are_those_of_evaluation(
    run: Path, betons: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By default with the EMA of the weights, and on the same pixels as from the validation loader."""
    cfg = small_config(betons)
    batch = next(ValData(replace(cfg, micro_batch=20, global_batch=20), SINGLE_RANK).batches())
    pixels = np.stack([load_image(path, cfg) for path in images])
    assert np.array_equal(pixels, batch.images.numpy())
    ema = make_finished_run(run.parent / "again", cfg).ema
    with torch.inference_mode():
        probabilities = ema(normalize(batch.images, cfg.augment)).softmax(dim=1)
    code, out, err = run_predict(capsys, run, *images, "--json", "--device", "cpu")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["file"] for answer in answers] == [str(path) for path in images]
    for answer, expected in zip(answers, probabilities, strict=True):
        best = expected.topk(5)
        assert [p["class"] for p in answer["predictions"]] == [NAMES[i] for i in best.indices.tolist()]
        assert [p["probability"] for p in answer["predictions"]] == pytest.approx(best.values.tolist(), abs=2e-6)
    assert len({answer["predictions"][0]["class"] for answer in answers}) > 1


def test_five_classes_per_image_are_printed_by_default(
    run: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--top` changes the number, up to the number of classes; `--weights last` gives other predictions."""
    code, out, _ = run_predict(capsys, run, images[0], images[1])
    lines = out.splitlines()
    assert code == 0 and len(lines) == 12 and lines[0] == str(images[0])
    assert all(any(line.endswith(f"%  {name}") for name in NAMES) for line in lines[1:6])
    assert len(run_predict(capsys, run, images[0], "--top", "99")[1].splitlines()) == 11
    assert run_predict(capsys, run, images[0], "--weights", "last")[1] != run_predict(capsys, run, images[0])[1]


def test_a_damaged_image_is_reported_and_the_others_are_predicted(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truncated, not an image, missing, a folder: one line on stderr each, exit code 1, and no effect on the others."""
    cut, text = tmp_path / "cut.png", tmp_path / "text.jpg"
    cut.write_bytes(images[0].read_bytes()[:-300])
    text.write_text("hello")
    bad = [cut, text, tmp_path / "none.jpg", tmp_path]
    expected = run_predict(capsys, run, images[0], images[1])[1]
    code, out, err = run_predict(capsys, run, cut, images[0], text, tmp_path / "none.jpg", images[1], tmp_path)
    assert (code, out) == (1, expected)
    assert len(err.splitlines()) == 4
    assert all(any(line.startswith(f"vit.predict: {path}: ") for line in err.splitlines()) for path in bad)
    code, out, _ = run_predict(capsys, run, text, images[0], "--json")
    assert code == 1 and "error" in json.loads(out.splitlines()[0]) and "error" not in json.loads(out.splitlines()[1])
    assert run_predict(capsys, run, *bad)[0] == 1


def test_other_errors_are_reported_in_one_line(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2: a run that does not exist, `--top 0`."""
    code, out, err = run_predict(capsys, tmp_path / "none", images[0])
    assert (code, out, err) == (2, "", f"vit.predict: {tmp_path}/none is not a run folder: it does not exist\n")
    with pytest.raises(SystemExit) as ended:
        predict.main([str(run), str(images[0]), "--top", "0"])
    assert ended.value.code == 2 and "--top must be at least 1, not 0" in capsys.readouterr().err


def test_photographs_are_rotated_by_their_exif_tag_and_center_cropped(betons: Path, tmp_path: Path) -> None:
    """Grayscale, palette, transparent and 16-bit images are converted to RGB."""
    cfg = small_config(betons)
    y, x = np.mgrid[:60, :90]
    photo = Image.fromarray(np.stack([2 * x, 4 * y, x + y], axis=2).astype(np.uint8))
    expected = np.asarray(photo.resize((48, 32), Image.Resampling.BILINEAR).crop((10, 2, 38, 30)))
    photo.save(tmp_path / "upright.png")
    assert np.array_equal(load_image(tmp_path / "upright.png", cfg), expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer must rotate it by 90 degrees clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "rotated.png", cfg), expected)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        photo.convert(mode).save(tmp_path / f"{mode}.png")
        assert load_image(tmp_path / f"{mode}.png", cfg).shape == (28, 28, 3)
    deep = np.asarray(photo.convert("L")).astype(np.uint16) * 256
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(load_image(tmp_path / "deep.png", cfg), load_image(tmp_path / "L.png", cfg))


def test_the_attention_weights_are_those_that_the_model_computed_with() -> None:
    """For each head of each block: applied to the values, they give the output of the fused kernel."""
    model = randomized(VisionTransformer(SMALL)).eval().requires_grad_(False)
    seen = []
    module = model.blocks[1].attention
    module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    logits, weights = forward_with_attention(model, random_images(2, 28))
    torch.testing.assert_close(logits, model(random_images(2, 28)))
    assert weights.shape == (2, 3, 4, 17, 17)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 4, 17))
    x, y = seen[0]
    v = module.qkv(x).view(2, 17, 3, 4, 8)[:, :, 2].transpose(1, 2)  # (B, H, N, d)
    torch.testing.assert_close(module.out((weights[:, 1] @ v).transpose(1, 2).reshape(2, 17, 32)), y)
    torch.testing.assert_close(attention_weights(module, x), weights[:, 1])
    assert not any(block.attention._forward_hooks for block in (model.blocks[0], model.blocks[2]))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_rollout_is_that_of_abnar_and_zuidema(pool: str) -> None:
    """In numpy: the product of (attention + identity) / 2 over all blocks, then the row of the head's input."""
    model = randomized(VisionTransformer(replace(SMALL, pool=pool))).eval()
    _, weights = forward_with_attention(model, random_images(2, 28))
    product = np.eye(weights.shape[-1])
    for block in range(3):
        product = (0.5 * weights[1, block].numpy().mean(axis=0) + 0.5 * np.eye(len(product))) @ product
    np.testing.assert_allclose(rollout(weights)[1], product, rtol=1e-5)
    found = patch_maps(model, weights)
    assert found.shape == (2, 5, 4, 4)
    row = product[0, 1:] if pool == "cls" else product.mean(axis=0)
    np.testing.assert_allclose(found[1, 0].flatten(), row, rtol=1e-5)
    last = weights[1, 2, 3].numpy()
    np.testing.assert_allclose(found[1, 4].flatten(), last[0, 1:] if pool == "cls" else last.mean(axis=0), rtol=1e-5)


def test_attention_figures_are_brightest_where_the_attention_is_highest() -> None:
    """Tiles: the image, the rollout, each head of the last block."""
    weights = np.zeros((3, 4, 4), np.float32)
    weights[0, 0, 3] = weights[1, 3, 0] = weights[2, 2, 2] = 1
    gray = np.full((28, 28, 3), 99, np.uint8)
    figure = attention_figure(gray, weights, "50.0%  ant").convert("L")
    sheet = np.asarray(figure)[-232:-8]  # without title, captions and margins
    tiles = [sheet[:, 8 + i * 232 :][:, :224] for i in range(4)]
    assert sheet.shape == (224, 8 + 4 * 232) and (tiles[0] == 99).all()
    for tile, (row, column) in zip(tiles[1:], [(0, 3), (3, 0), (2, 2)], strict=True):
        cells = tile.reshape(4, 56, 4, 56).mean(axis=(1, 3))
        assert np.unravel_index(cells.argmax(), (4, 4)) == (row, column)


@pytest.mark.parametrize(("heads", "columns"), [(4, 6), (6, 4), (12, 7)])
def test_the_maps_of_an_attention_figure_fill_its_rows(heads: int, columns: int) -> None:
    """The image, the rollout and six heads, as of ViT-S, are two rows of four."""
    figure = attention_figure(np.zeros((32, 32, 3), np.uint8), np.zeros((1 + heads, 2, 2), np.float32), "50.0%  ant")
    rows = (2 + heads) // columns
    assert figure.size == (8 + columns * 232, 40 + rows * 256)


def test_attention_figures_say_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicted class with its probability, and what each tile is; a name that is too long is cut at the edge."""
    draw, texts = ImageDraw.ImageDraw.text, []

    def record(self: ImageDraw.ImageDraw, position: tuple[float, float], text: str, *args: Any, **options: Any) -> None:
        texts.append(text)
        left, top, right, bottom = self.textbbox(position, text, args[1], anchor=options["anchor"])
        assert left >= 0 and right <= self.im.size[0] and top >= 0 and bottom <= self.im.size[1]
        assert bottom - top >= 10  # pixels
        draw(self, position, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    pixels, maps = np.zeros((28, 28, 3), np.uint8), np.random.default_rng(0).random((9, 4, 4), np.float32)
    best = (("ant\nlion", 0.9512), ("bee", 0.03))
    predict._write_figure(0, Prediction(Path("x"), pixels=pixels, maps=torch.from_numpy(maps), best=best), tmp_path)
    heads = [f"last block, head {i} of 8" for i in range(1, 9)]
    assert texts == ["95.1%  ant lion", "image", "attention rollout", *heads]
    attention_figure(pixels, maps, "100.0%  " + 200 * "ant ")
    assert texts[11].startswith("100.0%  ant ant ") and texts[11].endswith("…")


def test_attention_writes_a_figure_for_each_readable_image_and_says_where(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below its classes, and in the JSON."""
    (tmp_path / "bad.png").write_text("not an image")
    maps = tmp_path / "maps"
    files = [images[0], tmp_path / "bad.png", images[1]]
    code, out, _ = run_predict(capsys, run, *files, "--attention", maps)
    assert code == 1
    written = [maps / "000-0.png", maps / "002-1.png"]
    assert sorted(maps.iterdir()) == written
    with Image.open(written[0]) as figure:
        assert figure.width == 8 + 4 * 232  # image, rollout, two heads
    lines = out.splitlines()
    assert [line for line in lines if "attention" in line] == [f"  attention maps: {path}" for path in written]
    without = [line for line in lines if "attention" not in line]
    assert without == run_predict(capsys, run, images[0], images[1])[1].splitlines()
    answers = run_predict(capsys, run, *files, "--attention", maps, "--json")[1].splitlines()
    assert [json.loads(answer).get("attention") for answer in answers] == [str(written[0]), None, str(written[1])]
