"""The command check_beton: intact files, the picture, usage errors, and interruption."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.beton_reader import read_beton_index
from data_prep.check_beton import main
from data_prep.contact_sheet import draw
from tests.helpers.image_files import noise, save_image
from tests.helpers.paths import CHECKOUT
from tests.helpers.write_command import write_beton

TILE, CAPTION, GAP = 144, 18, 6  # pixels of a contact sheet

# check_beton with a decoder that announces each image, and then waits until the check is interrupted.
SLOW_CHECK = """
import runpy, threading
from concurrent.futures import ThreadPoolExecutor
from data_prep.beton_reader import BetonIndex
read_pixels, shutdown, interrupted = BetonIndex.read_pixels, ThreadPoolExecutor.shutdown, threading.Event()
def read_slowly(*arguments):
    print(flush=True)
    interrupted.wait(10)
    return read_pixels(*arguments)
def shut_down(pool, wait=True, *, cancel_futures=False):
    if cancel_futures:
        interrupted.set()
    shutdown(pool, wait, cancel_futures=cancel_futures)
BetonIndex.read_pixels, ThreadPoolExecutor.shutdown = read_slowly, shut_down
runpy.run_module("data_prep.check_beton", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_an_intact_file_passes(mode: str, intact_betons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 0, and stdout says what was checked."""
    assert main([str(intact_betons / f"{mode}.beton")]) == 0
    printed = capsys.readouterr()
    assert "12 samples in 3 classes" in printed.out
    assert printed.err == ""


def test_class_names_of_many_languages_are_readable_in_the_picture(tmp_path: Path) -> None:
    """Letters that a font lacks would all be drawn as the same box."""
    save_image(tmp_path / "images" / "a" / "1.png", noise(50, 50))
    beton = write_beton(tmp_path / "raw.beton", "imagefolder", tmp_path / "images", "--mode", "raw")
    pictures = set()
    for name in "éèñßøжΩ":
        draw(read_beton_index(beton, 1), [name], tmp_path / "a.png")
        pictures.add((tmp_path / "a.png").read_bytes())
    assert len(pictures) == 7


def test_the_picture_shows_random_samples_with_their_classes(tmp_path: Path) -> None:
    """Large images are scaled down, small ones enlarged by an integer factor; the same seed gives the same picture."""
    for i in range(12):
        pixels = noise(500, 470 + i, i) if i % 2 else noise(50, 40 + i, i)
        save_image(tmp_path / "images" / "abc"[i % 3] / f"{i}.png", pixels, compress_level=0)
    out = write_beton(tmp_path / "raw.beton", "imagefolder", tmp_path / "images", "--mode", "raw")
    pictures = []
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        picture = tmp_path / "new" / "folder" / name
        assert main([str(out), "--picture", str(picture), "--count", "5", "--seed", str(seed)]) == 0
        pictures.append(picture.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    index = read_beton_index(out, 3)
    chosen = np.sort(np.random.default_rng(0).choice(12, 5, replace=False)).tolist()
    assert {index.height[sample] for sample in chosen} == {50, 500}
    with Image.open(tmp_path / "new" / "folder" / "a.png") as sheet, out.open("rb") as file:
        pixels = np.asarray(sheet.convert("RGB"))
        for i, sample in enumerate(chosen):
            left = GAP + i * (TILE + GAP)
            image = Image.fromarray(index.read_pixels(file.fileno(), sample))
            factor = max(1, TILE // max(image.size))
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
            image.thumbnail((TILE, TILE))
            x, y = left + (TILE - image.width) // 2, GAP + (TILE - image.height) // 2
            np.testing.assert_array_equal(pixels[y : y + image.height, x : x + image.width], np.asarray(image))
            caption = pixels[GAP + TILE : GAP + TILE + CAPTION, left : left + TILE]
            assert (caption < 128).any(), "the class name is missing"
        assert (pixels[GAP : GAP + TILE, GAP + 5 * (TILE + GAP) :] == 255).all()


def test_a_picture_that_cannot_be_written_is_named(intact_betons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr; before the check, if the name or the folder is wrong, because a check may take long."""
    picture = intact_betons / "folder.png"
    picture.mkdir()
    assert main([str(intact_betons / "raw.beton"), "--picture", str(picture)]) == 1
    assert capsys.readouterr().err == f"error: {picture}: Is a directory\n"
    for name, problem in (
        ("sheet.gif", "the name must end in .png"),
        ("raw.beton/sheet.png", f"{intact_betons}/raw.beton is not a folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(intact_betons / "damaged.beton"), "--picture", str(intact_betons / name)])
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--picture {intact_betons / name}: {problem}" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_exits_soon_with_one_line(number: signal.Signals, intact_betons: Path) -> None:
    """Ctrl-C or SIGTERM while it decodes: exit code 130, no traceback."""
    command = [sys.executable, "-c", SLOW_CHECK, str(intact_betons / "raw.beton")]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        started = time.monotonic()
        process.send_signal(number)
        stderr = process.stderr.read()
        assert process.wait(20) == 130
    assert time.monotonic() - started < 10
    assert stderr.count("\n") == 1 and "interrupted" in stderr


@pytest.mark.parametrize("options", [["--count", "0"], ["--workers", "0"], ["--seed", "-1"]], ids="=".join)
def test_an_option_out_of_range_is_a_usage_error(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 2; the message names the option and the value."""
    with pytest.raises(SystemExit) as exit_info:
        main(["some.beton", *options])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert options[0].removeprefix("--") in message
    assert f"not {options[1]}" in message
