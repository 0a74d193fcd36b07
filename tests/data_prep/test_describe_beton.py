"""Files that FFCV's own writer made: describe_beton makes the manifest with which they can be used as they are."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import check_beton, write_beton
from data_prep.describe_beton import main
from data_prep.sources.labels import read_classes
from data_prep.sources.source import InputError
from tests.helpers.image_files import Pixels, encode_image, image_folder, smooth
from tests.helpers.stock_ffcv import StockFfcv
from tests.helpers.write_command import file_names, single_stderr_line
from vit.data.beton import open_beton
from vit.data.dataset_manifest import manifest_path, read_dataset_manifest
from vit.data.decode import CenterCrop, Decoder
from vit.run.hints import command

SIDE, SAMPLES = 48, 9
IMAGES = [smooth(SIDE, SIDE, seed) for seed in range(SAMPLES)]
LABELS = [i % 3 for i in range(SAMPLES)]
MODES: dict[str, dict[str, Any]] = {
    "raw": {"write_mode": "raw"},
    "jpg": {"write_mode": "jpg"},
    "smart": {"write_mode": "smart", "smart_threshold": 1000},
    "proportion": {"write_mode": "proportion", "compress_probability": 0.5},
}
# Of the file of FFCV's writer, in bytes: where the records of the samples begin, and the length of each.
RECORDS, RECORD = 24 + 2 * 1041, 24


def trained_on(beton: Path) -> tuple[Pixels, list[int]]:
    """The images and labels that training gets, at full size."""
    data = open_beton(beton)
    out = np.empty((len(data), SIDE, SIDE, 3), np.uint8)
    samples = np.arange(len(data))
    Decoder(data, CenterCrop(1.0), "ffcv").decode(np.zeros_like(samples), samples, out)
    return out, data.labels.tolist()


@pytest.mark.parametrize("mode", MODES)
def test_a_file_of_ffcvs_own_writer_is_trained_on_as_it_is(
    mode: str, stock_ffcv: StockFfcv, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training gets the pixels and labels that FFCV's Loader gives, for each write_mode; the file is not changed."""
    beton = stock_ffcv.write(tmp_path / "x.beton", IMAGES, LABELS, **MODES[mode])
    content = beton.read_bytes()
    classes = tmp_path / "classes.txt"
    classes.write_text("ant\nbee\nCat é\n", encoding="utf-8")
    assert main([str(beton), "--classes", str(classes)]) == 0
    assert "9 samples, 48 x 48 pixels" in capsys.readouterr().out
    assert beton.read_bytes() == content
    assert check_beton.main([str(beton)]) == 0
    manifest = read_dataset_manifest(beton)
    assert (manifest.classes, manifest.histogram, manifest.seed) == (["ant", "bee", "Cat é"], [3, 3, 3], None)
    assert manifest.source == "an existing file, described by data_prep.describe_beton"
    pixels, labels = trained_on(beton)
    stock_pixels, stock_labels = stock_ffcv.read(beton)
    np.testing.assert_array_equal(pixels, stock_pixels)
    assert labels == stock_labels.tolist() == LABELS
    tolerance = 1e-9 if mode == "raw" else 0.01  # FFCV's decoder of JPEGs is off by a few levels
    np.testing.assert_allclose(manifest.mean, pixels.reshape(-1, 3).mean(0) / 255, atol=tolerance)
    np.testing.assert_allclose(manifest.std, pixels.reshape(-1, 3).std(0) / 255, atol=tolerance)
    if mode == "raw":
        np.testing.assert_array_equal(pixels, IMAGES)


def test_fields_may_have_other_names_and_classes_default_to_numbers(stock_ffcv: StockFfcv, tmp_path: Path) -> None:
    """FFCV's examples call them `image` and `label`, but any names are possible."""
    beton = stock_ffcv.write(tmp_path / "x.beton", IMAGES, LABELS, ("img", "target"), write_mode="raw")
    assert main([str(beton)]) == 0
    assert read_dataset_manifest(beton).classes == ["0", "1", "2"]
    np.testing.assert_array_equal(trained_on(beton)[0], IMAGES)
    assert check_beton.main([str(beton)]) == 0


def too_few_names(beton: Path) -> tuple[list[str], str]:
    names = beton.with_name("names.json")
    names.write_text('["a", "b"]')
    return ["--classes", str(names)], "label 2 is damaged: its label is not in 0 to 1"


def negative_label(beton: Path) -> tuple[list[str], str]:
    overwrite(beton, RECORDS + 4 * RECORD + 16, struct.pack("<q", -1))
    return [], "sample 4 at offset"


def no_height(beton: Path) -> tuple[list[str], str]:
    overwrite(beton, RECORDS + 3 * RECORD + 3, struct.pack("<H", 0))
    return [], "its mode or size is impossible"


def damaged_jpeg(beton: Path) -> tuple[list[str], str]:
    (offset,) = struct.unpack_from("<Q", beton.read_bytes(), RECORDS + 5 * RECORD + 5)
    overwrite(beton, offset, bytes(300))
    return [], "sample 5 at offset"


def grayscale_jpeg(beton: Path) -> tuple[list[str], str]:
    content = encode_image(smooth(SIDE, SIDE)[:, :, 0])
    (offset,) = struct.unpack_from("<Q", beton.read_bytes(), RECORDS + 2 * RECORD + 5)
    overwrite(beton, offset, content[:600])
    return [], "sample 2 at offset"


def truncated(beton: Path) -> tuple[list[str], str]:
    beton.write_bytes(beton.read_bytes()[:-24])
    return [], "is truncated or damaged"


def fields_in_another_order(beton: Path) -> tuple[list[str], str]:
    content = beton.read_bytes()
    first, second = content[24 : 24 + 1041], content[24 + 1041 : RECORDS]
    overwrite(beton, 24, second + first)
    return [], "has the fields label (int), image (image), not one image and one int, in this order"


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize(
    "damage",
    [too_few_names, negative_label, no_height, damaged_jpeg, grayscale_jpeg, truncated, fields_in_another_order],
    ids=lambda damage: damage.__name__,
)
def test_a_file_that_training_cannot_use_gets_no_manifest(
    damage: Callable[[Path], tuple[list[str], str]],
    stock_jpegs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line says why, and names the first bad sample."""
    beton = tmp_path / "x.beton"
    beton.write_bytes(stock_jpegs.read_bytes())
    options, message = damage(beton)
    before = file_names(tmp_path)
    assert main([str(beton), *options]) == 1
    assert message in single_stderr_line(capsys)
    assert file_names(tmp_path) == before


@pytest.fixture(scope="module")
def stock_jpegs(stock_ffcv: StockFfcv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of JPEGs, written by FFCV's own writer."""
    return stock_ffcv.write(tmp_path_factory.mktemp("stock") / "x.beton", IMAGES, LABELS, write_mode="jpg")


def test_names_come_from_lines_json_or_another_manifest(tmp_path: Path) -> None:
    """Names that are there twice are refused: data sets are compared by them."""
    file = tmp_path / "names"
    for text, expected in (
        ("a\nb c\n\n", (["a", "b c"], None)),
        ('["a", "b c"]', (["a", "b c"], None)),
        (json.dumps({"classes": ["n1", "n2"], "names": ["a", "b"]}), (["n1", "n2"], ["a", "b"])),
    ):
        file.write_text(text)
        assert read_classes(file) == expected
    for text, message in (
        ("a\n\nb", "class 1 has no name"),
        ("a\nb\na", "classes 0 and 2"),
        ("", "no list"),
        ("[", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_classes(file)


def test_no_command_suggests_or_does_overwrite_a_file_of_another_program(
    stock_jpegs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither before nor after it was described, nor with --force."""
    beton = tmp_path / "x.beton"
    beton.write_bytes(stock_jpegs.read_bytes())
    write = ["imagefolder", str(image_folder(tmp_path / "images")), "--out", str(beton)]
    for described in (False, True):
        assert write_beton.main(write) == 1
        message = single_stderr_line(capsys)
        assert "--force" not in message
        assert described or command("data_prep.describe_beton", str(beton)) in message
        assert write_beton.main([*write, "--force"]) == 1
        assert "move it away, or give another --out" in single_stderr_line(capsys)
        if not described:
            with pytest.raises(ValueError, match="describe_beton"):
                open_beton(beton)
            assert check_beton.main([str(beton)]) == 1
            assert "describe_beton" in single_stderr_line(capsys)
        assert main([str(beton)]) == 0  # may be repeated, for example with other names
        capsys.readouterr()
    assert beton.read_bytes() == stock_jpegs.read_bytes()


def test_the_manifest_of_another_program_is_not_replaced(
    stock_jpegs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file x.beton.json that is not of this command is kept."""
    beton = tmp_path / "x.beton"
    beton.write_bytes(stock_jpegs.read_bytes())
    manifest_path(beton).write_text("{}")
    assert main([str(beton)]) == 1
    assert "move it away" in single_stderr_line(capsys)
    assert manifest_path(beton).read_text() == "{}"
