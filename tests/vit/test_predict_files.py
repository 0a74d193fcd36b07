"""`python -m vit.predict` answers for every image in its list, whatever else is in that list."""

import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import NAMES, make_finished_run
from tests.helpers.image_files import encode_image, save_bytes, save_image, smooth
from tests.helpers.memory import address_space
from tests.helpers.paths import CHECKOUT
from vit.model.vision_transformer import VisionTransformer
from vit.predict import main, predict

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.fixture(scope="module")
def run(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    make_finished_run(folder, small_config(betons))
    return folder


@dataclass
class Mixture:
    """Files of which some can be answered: each with the reason why not."""

    files: list[Path]
    reasons: list[str]  # a part of the line on stderr; empty: the image is answered


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    """Good pictures with odd names and shapes, and everything else that a folder may have."""
    picture = smooth(40, 50)
    os.mkfifo(tmp_path / "pipe.jpg")
    tiff = bytearray(encode_image(picture, "TIFF", compression="tiff_lzw"))
    tiff[100:150] = bytes(50)  # libtiff has its own messages about this
    bad = {
        save_bytes(tmp_path / "damaged.avif", encode_image(picture, "AVIF")[:-200]): "",
        save_bytes(tmp_path / "damaged.dds", b"DDS " + bytes(range(200))): "",
        save_bytes(tmp_path / "damaged.tif", bytes(tiff)): "",
        save_bytes(tmp_path / "cut.png", encode_image(picture, "PNG")[:-300]): "",
        save_bytes(tmp_path / "empty.jpg", b""): "not an image",
        save_bytes(
            tmp_path / "large.png", _png_header(20_000, 20_000)
        ): "more than 179 megapixels; --max-megapixels admits it",
        tmp_path / "pipe.jpg": "not a regular file",
        tmp_path: "a folder",
        tmp_path / "none\n.jpg": "No such file",
        tmp_path / os.fsdecode(b"none\xff.jpg"): "No such file",
        Path("https://example.org/a.jpg"): "download it first",
        Path("/dev/null"): "not a regular file",
        Path("/proc/self/mem"): "Input/output error",
    }
    good = [
        save_image(tmp_path / "a.png", picture),
        save_image(tmp_path / NOT_UTF8, picture),
        save_image(tmp_path / "a\nb.png", picture),
        save_image(tmp_path / "wide.png", smooth(1, 30_000)),
        save_image(tmp_path / "tall.png", smooth(30_000, 1)),
        save_image(tmp_path / f"{'n' * 251}.png", picture),
        tmp_path / "a.png",  # again
    ]
    files, reasons = list(bad), [reason or ": " for reason in bad.values()]
    for i, file in enumerate(good):
        files.insert(2 * i, file)
        reasons.insert(2 * i, "")
    return Mixture(files, reasons)


def _png_header(width: int, height: int) -> bytes:
    """The start of a PNG file of that size."""
    small = encode_image(smooth(4, 4), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def command(run: Path, locale: str, *arguments: object) -> tuple[int, list[str], list[str]]:
    """The exit code and the lines on stdout and stderr of the command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vit.predict", run, *arguments, "--device", "cpu", "--top", "1"],
        cwd=CHECKOUT,
        env=os.environ | {"LC_ALL": locale},
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode().splitlines()


def test_every_image_is_answered_and_every_other_file_is_one_line_on_stderr(run: Path, mixture: Mixture) -> None:
    """Also names that are not UTF-8 or have a line break."""
    code, out, err = command(run, "C", *mixture.files)
    assert code == 1
    bad = [(file, reason) for file, reason in zip(mixture.files, mixture.reasons, strict=True) if reason]
    assert len(err) == len(bad), err
    for line, (file, reason) in zip(err, bad, strict=True):
        name = str(file).replace("\n", r"\x0a").replace("\udcff", r"\xff")
        assert line.startswith(f"vit.predict: {name}: ") and reason in line
    names = [Path(line).name for line in out[::2]]
    assert names == ["a.png", r"caf\xe9.png", r"a\x0ab.png", "wide.png", "tall.png", f"{'n' * 251}.png", "a.png"]
    assert out[1] == out[3] == out[5] == out[-1] and out[1].endswith(tuple(NAMES))


def test_a_larger_image_is_answered_if_it_is_admitted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--max-megapixels` sets the limit, which keeps a small file from taking all of the memory."""
    image = save_image(tmp_path / "image.png", smooth(1000, 1001))
    assert main([str(run), str(image), "--max-megapixels", "2"]) == 0
    assert main([str(run), str(image), "--max-megapixels", "1"]) == 1
    expected = f"vit.predict: {image}: it has more than 1 megapixels; --max-megapixels admits it\n"
    assert capsys.readouterr().err == expected


def test_json_and_attention_maps_name_every_file(run: Path, mixture: Mixture, tmp_path: Path) -> None:
    """A name that is not UTF-8 opens the same file when it is read back from the JSON."""
    maps = tmp_path / "maps"
    code, out, err = command(run, "en_US.UTF-8", *mixture.files, "--json", "--attention", maps)
    answers = [json.loads(line) for line in out]
    assert code == 1 and len(err) == sum(map(bool, mixture.reasons))
    assert [Path(answer["file"]) for answer in answers] == mixture.files
    assert ["error" in answer for answer in answers] == [bool(reason) for reason in mixture.reasons]
    written = {path.name for path in maps.iterdir()}
    assert len(written) == mixture.reasons.count("")
    assert f"002-{NOT_UTF8}" in written and "000-a.png" in written and f"010-{'n' * 200}.png" in written


def test_an_image_for_which_the_memory_is_not_enough_is_reported(betons: Path, tmp_path: Path) -> None:
    """It has 100 megapixels in a file of a few kilobytes; the others are answered."""
    cfg = small_config(betons)
    model = make_finished_run(tmp_path / "run", cfg).model.eval()
    small = save_image(tmp_path / "small.png", smooth(40, 50))
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    with address_space(200_000_000):
        answers = list(predict(model, cfg, NAMES, [small, tmp_path / "large.png", small]))
    assert [answer.error for answer in answers] == [None, "not enough memory to read it", None]


def test_a_gpu_that_is_too_small_for_the_model_is_reported_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be smaller than those of the training, or in use."""
    monkeypatch.setattr(VisionTransformer, "to", mock.Mock(side_effect=torch.OutOfMemoryError("Tried to allocate")))
    assert main([str(run), str(save_image(tmp_path / "image.png", smooth(40, 50)))]) == 2
    expected = "vit.predict: the memory of the GPU is not enough for the model; use another GPU, or --device cpu\n"
    assert capsys.readouterr().err == expected


def test_images_that_do_not_fit_into_the_memory_together_are_classified_in_smaller_batches(
    betons: Path, tmp_path: Path
) -> None:
    """torch's allocator fails above two images, and at one image by itself: the black one."""
    cfg = small_config(betons)
    model = make_finished_run(tmp_path / "run", cfg).model.eval()
    files = [save_image(tmp_path / f"{i}.png", smooth(40, 50, i)) for i in range(6)]
    expected = [answer.best for answer in predict(model, cfg, NAMES, files)]
    files.insert(3, save_image(tmp_path / "black.png", np.zeros((40, 50, 3), np.uint8)))

    def fail(_: object, inputs: tuple[Tensor]) -> None:
        one_color = (inputs[0].amax(dim=(2, 3)) == inputs[0].amin(dim=(2, 3))).all(dim=1)
        if len(inputs[0]) > 2 or one_color.any():
            torch.empty(2**60, dtype=torch.uint8)

    with model.register_forward_pre_hook(fail):
        answers = list(predict(model, cfg, NAMES, files))
    assert [answer.error for answer in answers] == [*3 * [None], "not enough memory to classify it", *3 * [None]]
    found = [answer for answer in answers if answer.error is None]
    for answer, best in zip(found, expected, strict=True):
        assert [name for name, _ in answer.best] == [name for name, _ in best]
        assert [p for _, p in answer.best] == pytest.approx([p for _, p in best], abs=1e-5)
