"""Predictions are what evaluation would have computed, by name; a bad image costs nobody else theirs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import NAMES, finished
from tests.vit.model.test_vision_transformer import SMALL, pictures, trained
from vit import predict
from vit.augment.pipeline import normalize
from vit.data.loader import ValData
from vit.distributed.world import ALONE
from vit.model.attention_maps import attention_shares, look, maps, rollout
from vit.model.vision_transformer import VisionTransformer
from vit.predict import Prediction, picture, pixels


@pytest.fixture(scope="module")
def run(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights for Fashion-MNIST's ten classes."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    finished(folder, small_config(betons))
    return folder


@pytest.fixture(scope="module")
def images(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty real images of the validation set, as files."""
    beton = ValData(small_config(betons), ALONE).beton
    folder = tmp_path_factory.mktemp("images")
    out = []
    for i in range(20):
        content = beton.storage.fetch(beton.offset[i : i + 1], beton.size[i : i + 1])
        raw = content[0][int(content[1][0]) :][: int(beton.size[i])].reshape(28, 28, 3)
        out.append(folder / f"{i}.png")
        Image.fromarray(raw).save(out[-1])
    return out


def said(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = predict.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_probabilities_are_those_of_evaluation(
    run: Path, betons: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the averaged weights, on the very pixels that the validation set's loader makes of the same images."""
    cfg = small_config(betons)
    batch = next(ValData(replace(cfg, micro_batch=20, global_batch=20), ALONE).batches())
    seen = np.stack([pixels(path, cfg) for path in images])
    assert np.array_equal(seen, batch.images.numpy())
    average = finished(run.parent / "again", cfg).ema
    with torch.inference_mode():
        shares = average(normalize(batch.images, cfg.augment)).softmax(dim=1)
    code, out, err = said(capsys, run, *images, "--json", "--device", "cpu")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["file"] for answer in answers] == [str(path) for path in images]
    for answer, expected in zip(answers, shares, strict=True):
        best = expected.topk(5)
        assert [p["class"] for p in answer["predictions"]] == [NAMES[i] for i in best.indices.tolist()]
        assert [p["probability"] for p in answer["predictions"]] == pytest.approx(best.values.tolist(), abs=2e-6)
    assert len({answer["predictions"][0]["class"] for answer in answers}) > 1


def test_the_table_names_five_classes_for_each_image(
    run: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Or as many as were asked for, and no more than there are; the last weights say something else."""
    code, out, _ = said(capsys, run, images[0], images[1])
    lines = out.splitlines()
    assert code == 0 and len(lines) == 12 and lines[0] == str(images[0])
    assert all(any(line.endswith(f"%  {name}") for name in NAMES) for line in lines[1:6])
    assert len(said(capsys, run, images[0], "--top", "99")[1].splitlines()) == 11
    assert said(capsys, run, images[0], "--weights", "last")[1] != said(capsys, run, images[0])[1]


def test_a_corrupt_image_is_named_and_the_others_are_predicted(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short, no image, not there, a folder: exit code 1, one line each, and the rest as if they were not there."""
    cut, text = tmp_path / "cut.png", tmp_path / "text.jpg"
    cut.write_bytes(images[0].read_bytes()[:-300])
    text.write_text("hello")
    bad = [cut, text, tmp_path / "none.jpg", tmp_path]
    alone = said(capsys, run, images[0], images[1])[1]
    code, out, err = said(capsys, run, cut, images[0], text, tmp_path / "none.jpg", images[1], tmp_path)
    assert (code, out) == (1, alone)
    assert len(err.splitlines()) == 4
    assert all(any(line.startswith(f"vit.predict: {path}: ") for line in err.splitlines()) for path in bad)
    code, out, _ = said(capsys, run, text, images[0], "--json")
    assert code == 1 and "error" in json.loads(out.splitlines()[0]) and "error" not in json.loads(out.splitlines()[1])
    assert said(capsys, run, *bad)[0] == 1


def test_other_mistakes_are_said_in_one_line(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2: no such run, no GPU, no class to name."""
    code, out, err = said(capsys, tmp_path / "none", images[0])
    assert (code, out, err) == (2, "", f"vit.predict: {tmp_path}/none is no run folder: it does not exist\n")
    with pytest.raises(SystemExit) as ended:
        predict.main([str(run), str(images[0]), "--top", "0"])
    assert ended.value.code == 2 and "--top must be at least 1, not 0" in capsys.readouterr().err


def test_photographs_are_turned_upright_and_cut_in_the_middle(betons: Path, tmp_path: Path) -> None:
    """By the camera's tag; gray, palettes, transparency and 16 bits become RGB."""
    cfg = small_config(betons)
    y, x = np.mgrid[:60, :90]
    photo = Image.fromarray(np.stack([2 * x, 4 * y, x + y], axis=2).astype(np.uint8))
    expected = np.asarray(photo.resize((48, 32), Image.Resampling.BILINEAR).crop((10, 2, 38, 30)))
    photo.save(tmp_path / "upright.png")
    assert np.array_equal(pixels(tmp_path / "upright.png", cfg), expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "turned.png", cfg), expected)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        photo.convert(mode).save(tmp_path / f"{mode}.png")
        assert pixels(tmp_path / f"{mode}.png", cfg).shape == (28, 28, 3)
    deep = np.asarray(photo.convert("L")).astype(np.uint16) * 256
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(pixels(tmp_path / "deep.png", cfg), pixels(tmp_path / "L.png", cfg))


def test_the_shares_are_what_the_model_computed_with() -> None:
    """Of each head of each block: mixing its values by them gives what the fused kernel gave; logits are the same."""
    model = trained(VisionTransformer(SMALL)).eval().requires_grad_(False)
    seen = []
    module = model.blocks[1].attention
    module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    logits, shares = look(model, pictures(2, 28))
    torch.testing.assert_close(logits, model(pictures(2, 28)))
    assert shares.shape == (2, 3, 4, 17, 17)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, 3, 4, 17))
    x, y = seen[0]
    v = module.qkv(x).view(2, 17, 3, 4, 8)[:, :, 2].transpose(1, 2)  # (B, H, N, K)
    torch.testing.assert_close(module.out((shares[:, 1] @ v).transpose(1, 2).reshape(2, 17, 32)), y)
    torch.testing.assert_close(attention_shares(module, x), shares[:, 1])
    assert not any(block.attention._forward_hooks for block in (model.blocks[0], model.blocks[2]))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_rollout_is_abnar_and_zuidemas(pool: str) -> None:
    """In numpy, token by token: half by the residual path, block after block; then the row that the head reads."""
    model = trained(VisionTransformer(replace(SMALL, pool=pool))).eval()
    _, shares = look(model, pictures(2, 28))
    reached = np.eye(shares.shape[-1])
    for block in range(3):
        reached = (0.5 * shares[1, block].numpy().mean(axis=0) + 0.5 * np.eye(len(reached))) @ reached
    np.testing.assert_allclose(rollout(shares)[1], reached, rtol=1e-5)
    found = maps(model, shares)
    assert found.shape == (2, 5, 4, 4)
    row = reached[0, 1:] if pool == "cls" else reached.mean(axis=0)
    np.testing.assert_allclose(found[1, 0].flatten(), row, rtol=1e-5)
    last = shares[1, 2, 3].numpy()
    np.testing.assert_allclose(found[1, 4].flatten(), last[0, 1:] if pool == "cls" else last.mean(axis=0), rtol=1e-5)


def test_a_picture_is_bright_where_the_model_looked(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image, the rollout, then each head of the last block; `--attention` writes one for each whole image."""
    seen = torch.zeros(3, 4, 4)
    seen[0, 0, 3] = seen[1, 3, 0] = seen[2, 2, 2] = 1
    sheet = np.asarray(
        picture(Prediction(Path("x"), pixels=np.full((28, 28, 3), 99, np.uint8), maps=seen)).convert("L")
    )
    assert sheet.shape == (224, 4 * 224)
    assert (sheet[:, :224] == 99).all()
    for tile, (row, column) in enumerate([(0, 3), (3, 0), (2, 2)], start=1):
        cells = sheet[:, tile * 224 : (tile + 1) * 224].reshape(4, 56, 4, 56).mean(axis=(1, 3))
        assert np.unravel_index(cells.argmax(), (4, 4)) == (row, column)

    (tmp_path / "bad.png").write_text("no image")
    code, out, _ = said(capsys, run, images[0], tmp_path / "bad.png", images[1], "--attention", tmp_path / "looks")
    assert code == 1
    assert sorted(path.name for path in (tmp_path / "looks").iterdir()) == ["000-0.png", "002-1.png"]
    with Image.open(tmp_path / "looks" / "000-0.png") as written:
        assert written.size == (4 * 224, 224)  # two heads
    assert out == said(capsys, run, images[0], images[1])[1]
