"""Checking .beton files: a whole one passes, and every damage is named, with the first damaged sample and its place."""

import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.beton_reader import Beton, open_beton
from data_prep.check_beton import main
from data_prep.digests import digests
from data_prep.write_beton import main as write_main
from tests.helpers.paths import ROOT

HEADER, FIELD, SAMPLE, PLACE = 24, 1041, 24, 24  # bytes of FFCV's records


@pytest.fixture(scope="session")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 12 images in three classes: jpg.beton, of two parts, and raw.beton, of three."""
    folder = tmp_path_factory.mktemp("whole")
    random = np.random.default_rng(0)
    for i in range(12):
        path = folder / "images" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (500, 470 + i, 3), np.uint8)).save(path, compress_level=0)
    for mode in ("jpg", "raw"):
        arguments = ["imagefolder", str(folder / "images"), "--out", str(folder / f"{mode}.beton"), "--mode", mode]
        assert write_main(arguments) == 0
    return folder


@pytest.fixture
def files(whole_files: Path, tmp_path: Path) -> Path:
    """Copies of them, to be damaged."""
    for path in whole_files.glob("*.beton*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def opened(beton: Path) -> Beton:
    return open_beton(beton, 3)


def patch(beton: Path, offset: int, content: bytes) -> None:
    with beton.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(beton: Path, offset: int) -> None:
    patch(beton, offset, bytes([beton.read_bytes()[offset] ^ 0x55]))


def describe_as_it_is(beton: Path, **changed: Any) -> None:
    """Give the manifest the digests of the damaged file, as a writer at fault would."""
    path = beton.with_name(f"{beton.name}.json")
    content = json.loads(path.read_text())
    sha256, pages = digests(beton, content["page_size"])
    content |= {"bytes": beton.stat().st_size, "sha256": sha256, "pages": pages}
    path.write_text(json.dumps(content | changed))


def start_of_samples(fields: int = 2) -> int:
    return HEADER + fields * FIELD


def fault(beton: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command says of a file that is not whole."""
    assert main([str(beton), "--workers", "2"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert said.err.startswith(f"error: {beton}")
    return said.err


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_a_whole_file_passes(mode: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 0, and the sizes of FFCV's records are those that these tests count with."""
    assert main([str(files / f"{mode}.beton")]) == 0
    said = capsys.readouterr()
    assert "12 samples of 3 classes" in said.out
    assert said.err == ""
    assert opened(files / f"{mode}.beton").data_start == start_of_samples() + 12 * SAMPLE


def test_the_picture_shows_the_samples_with_their_classes(files: Path) -> None:
    """A tile for each, in which the sample's own colors are; the same seed draws the same picture."""
    beton = opened(files / "raw.beton")
    pictures = []
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        picture = files / "deep" / name
        assert main([str(files / "raw.beton"), "--picture", str(picture), "--count", "5", "--seed", str(seed)]) == 0
        pictures.append(picture.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    chosen = np.sort(np.random.default_rng(0).choice(12, 5, replace=False)).tolist()
    with Image.open(files / "deep" / "a.png") as sheet, (files / "raw.beton").open("rb") as file:
        pixels = np.asarray(sheet.convert("RGB"))
        for i, sample in enumerate(chosen):
            tile = pixels[6:150, 6 + 150 * i : 150 + 150 * i].astype(float)
            inner = Image.fromarray(beton.pixels(file.fileno(), sample))
            inner.thumbnail((144, 144))
            left = (144 - inner.width) // 2
            top = (144 - inner.height) // 2
            np.testing.assert_array_equal(tile[top : top + inner.height, left : left + inner.width], np.asarray(inner))
            assert (pixels[150:168, 6 + 150 * i : 150 + 150 * i] < 128).any(), "no name"
        assert (pixels[6:150, 6 + 150 * 5 :] == 255).all()


def test_a_picture_that_cannot_be_written_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 1."""
    assert main([str(files / "raw.beton"), "--picture", str(files)]) == 1
    assert capsys.readouterr().err == f"error: {files}: Is a directory\n"


def test_a_flipped_bit_in_pixels_is_named_by_its_part_and_first_sample(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No decoder can see it; the digest of the part does."""
    path = files / "raw.beton"
    beton = opened(path)
    sample = int(np.argmax(beton.offset))
    page = int(beton.offset[sample]) // beton.page_size
    flip(path, int(beton.offset[sample] + 7))
    in_page = np.flatnonzero(beton.offset // beton.page_size == page)
    said = fault(path, capsys)
    assert f"from sample {in_page[0]} at offset {beton.offset[in_page[0]]:,}" in said
    assert f"part {page} (bytes {page * beton.page_size:,} to " in said


def test_the_first_sample_that_cannot_be_decoded_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By index, offset and part, whether the digest tells of it too or not."""
    path = files / "jpg.beton"
    beton = opened(path)
    for sample in (9, 4):
        patch(path, int(beton.offset[sample] + beton.size[sample] // 2), b"\xff\xd9" * 300)
    place = f"sample 4 at offset {beton.offset[4]:,}, in part {beton.offset[4] // beton.page_size}"
    said = fault(path, capsys)
    assert place in said
    assert "digest" in said
    describe_as_it_is(path)
    said = fault(path, capsys)
    assert place in said
    assert "digest" not in said


def test_flipped_bits_anywhere_are_noticed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """150 places, each in one line: nothing crashes or hangs."""
    path = files / "jpg.beton"
    whole = path.read_bytes()
    beton = opened(path)
    random = np.random.default_rng(0)
    places = [*random.integers(0, len(whole), 40), *random.integers(0, beton.data_start, 40)]
    places += [*random.integers(len(whole) - 12 * PLACE, len(whole), 40), *range(HEADER)]
    for position in places:
        flip(path, int(position))
        said = fault(path, capsys)
        assert "sample" in said or "part" in said or "FFCV" in said or "damaged" in said or "fields" in said
        patch(path, int(position), whole[position : position + 1])
    assert main([str(path)]) == 0


def test_metadata_that_no_digest_guards_is_doubted_too(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flips in header, metadata and table, with digests made of them: reported or harmless, never a crash."""
    path = files / "jpg.beton"
    whole, manifest = path.read_bytes(), (files / "jpg.beton.json").read_bytes()
    random = np.random.default_rng(1)
    places = [*range(HEADER), *random.integers(HEADER, start_of_samples() + 12 * SAMPLE, 60)]
    places += random.integers(len(whole) - 12 * PLACE, len(whole), 60).tolist()
    codes = []
    for position in places:
        flip(path, int(position))
        describe_as_it_is(path)
        codes.append(main([str(path)]))
        assert capsys.readouterr().err.count("\n") == codes[-1]
        path.write_bytes(whole)
        (files / "jpg.beton.json").write_bytes(manifest)
    assert codes.count(1) > 60


def cut(path: Path) -> str:
    os.truncate(path, path.stat().st_size - 24)
    return "cut short"


def cut_in_half(path: Path) -> str:
    os.truncate(path, path.stat().st_size // 2)
    return "cut short"


def cut_to_nothing(path: Path) -> str:
    os.truncate(path, 0)
    return "no FFCV file"


def longer(path: Path) -> str:
    with path.open("ab") as file:
        file.write(bytes(100))
    return "bytes of"


def foreign(path: Path) -> str:
    path.write_bytes(b"PK\x03\x04" * 10_000)
    describe_as_it_is(path)
    return "no FFCV file of version 2"


def gone(path: Path) -> str:
    path.unlink()
    return "no such file"


def folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "no such file"


def label_out_of_range(path: Path) -> str:
    patch(path, start_of_samples() + 5 * SAMPLE + 16, struct.pack("<q", 3))
    describe_as_it_is(path)
    return "sample 5 at offset [0-9,]+, label 3: has a label that is not in 0 to 2"


def negative_label(path: Path) -> str:
    patch(path, start_of_samples() + 5 * SAMPLE + 16, struct.pack("<q", -1))
    describe_as_it_is(path)
    return "sample 5 at offset [0-9,]+, label -1"


def other_label(path: Path) -> str:
    labels = opened(path).labels
    patch(path, start_of_samples() + 16, struct.pack("<q", (labels[0] + 1) % 3))
    describe_as_it_is(path)
    return "class [abc] has [35] samples, its manifest says 4"


def float_label(path: Path) -> str:
    patch(path, HEADER + FIELD, b"\0")
    describe_as_it_is(path)
    return r"fields image \(image\), label \(float\)"


def one_field(path: Path) -> str:
    patch(path, 2, b"\1\0")
    describe_as_it_is(path)
    return r"fields image \(image\), not"


def more_samples(path: Path) -> str:
    patch(path, 8, struct.pack("<Q", 1 << 60))
    describe_as_it_is(path)
    return "no room for"


def fewer_samples(path: Path) -> str:
    patch(path, 8, struct.pack("<Q", 11))
    describe_as_it_is(path)
    return "has 11 samples, its manifest says 12"


def far_offset(path: Path) -> str:
    table = path.stat().st_size - 12 * PLACE
    for place in (start_of_samples() + 2 * SAMPLE + 5, table + 2 * PLACE + 8):
        patch(path, place, struct.pack("<Q", (1 << 64) - 8))
    describe_as_it_is(path)
    return "sample 2 at offset [0-9,]+, label [012]: lies outside"


def other_height(path: Path) -> str:
    patch(path, start_of_samples() + 3 * SAMPLE + 3, struct.pack("<H", 200))
    describe_as_it_is(path)
    return "sample 3 at offset"


def sample_named_twice(path: Path) -> str:
    patch(path, path.stat().st_size - PLACE, struct.pack("<Q", 3))
    describe_as_it_is(path)
    return "does not name each sample once"


def other_sha256(path: Path) -> str:
    describe_as_it_is(path, sha256=hashlib.sha256(b"other").hexdigest())
    return "is not the file of its manifest"


def no_manifest(path: Path) -> str:
    path.with_name(f"{path.name}.json").unlink()
    return "json does not exist"


def other_sizes(path: Path) -> str:
    content = json.loads(path.with_name(f"{path.name}.json").read_text())
    describe_as_it_is(path, image=content["image"] | {"max_width": 499})
    return "smallest and largest sides"


@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize(
    "spoil",
    [
        *(cut, cut_in_half, cut_to_nothing, longer, foreign, gone, folder, label_out_of_range, negative_label),
        *(other_label, float_label, one_field, more_samples, fewer_samples, far_offset, other_height),
        *(sample_named_twice, other_sha256, no_manifest, other_sizes),
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_what_is_wrong_is_named_in_one_line(
    spoil: Callable[[Path], str], mode: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; digests, where the file still has them, are those of the spoilt file."""
    path = files / f"{mode}.beton"
    why = spoil(path)
    assert re.search(why, fault(path, capsys))


def test_stopping_ends_it_with_one_line(whole_files: Path) -> None:
    """SIGTERM or Ctrl-C while it decodes: exit code 130, no traceback, and soon."""
    for number in (signal.SIGINT, signal.SIGTERM):
        slow = (
            "import runpy, sys, time; from data_prep.beton_reader import Beton; old = Beton.pixels\n"
            "def pixels(*a): print(flush=True); time.sleep(0.2); return old(*a)\n"
            "Beton.pixels = pixels\n"
            "runpy.run_module('data_prep.check_beton', run_name='__main__', alter_sys=True)"
        )
        command = [sys.executable, "-c", slow, str(whole_files / "raw.beton")]
        with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
            assert process.stdout and process.stderr
            process.stdout.readline()
            started = time.monotonic()
            process.send_signal(number)
            said = process.stderr.read()
            assert process.wait(20) == 130
        assert time.monotonic() - started < 10
        assert said.count("\n") == 1 and "interrupted" in said


@pytest.mark.parametrize("options", [["--count", "0"], ["--workers", "0"], ["--seed", "-1"]], ids="=".join)
def test_an_option_out_of_range_is_a_usage_error(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2; the message names the option and the value."""
    with pytest.raises(SystemExit) as ended:
        main(["some.beton", *options])
    assert ended.value.code == 2
    assert f"not {options[1]}" in capsys.readouterr().err
