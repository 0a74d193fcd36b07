"""check_beton detects every kind of damage, and names the first damaged sample and its offset."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.beton_reader import BetonIndex, read_beton_index
from data_prep.check_beton import main
from data_prep.digests import compute_digests
from vit.data.dataset_manifest import manifest_path

# Bytes of FFCV's records.  Written out here, so that a wrong size in our code cannot hide.
HEADER, FIELD, SAMPLE, ALLOCATION = 24, 1041, 24, 24
SAMPLES_START = HEADER + 2 * FIELD


def read_index(beton: Path) -> BetonIndex:
    return read_beton_index(beton, 3)


def patch(beton: Path, offset: int, content: bytes) -> None:
    with beton.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip_bits(beton: Path, offset: int) -> None:
    patch(beton, offset, bytes([beton.read_bytes()[offset] ^ 0x55]))


def update_digests(beton: Path, **changed: Any) -> None:
    """Gives the manifest the size and digests of the damaged file, as a faulty writer would; `changed` are its keys."""
    path = manifest_path(beton)
    content = json.loads(path.read_text())
    sha256, pages = compute_digests(beton, content["page_size"])
    content |= {"bytes": beton.stat().st_size, "sha256": sha256, "pages": pages}
    path.write_text(json.dumps(content | changed))


def check_and_get_error(beton: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Checks a damaged file; returns its message, which must be one line on stderr."""
    assert main([str(beton), "--workers", "2"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert printed.err.startswith(f"error: {beton}")
    return printed.err


def test_a_flipped_bit_in_pixels_is_reported_with_its_page_and_first_sample(
    betons_to_damage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No decoder can see it, but the digest of its page does not match."""
    path = betons_to_damage / "raw.beton"
    beton = read_index(path)
    sample = int(np.argmax(beton.offset))
    page = int(beton.offset[sample]) // beton.page_size
    flip_bits(path, int(beton.offset[sample] + 7))
    first = np.flatnonzero(beton.offset // beton.page_size == page)[0]
    message = check_and_get_error(path, capsys)
    assert f"from sample {first} at offset {beton.offset[first]:,}" in message
    assert f"page {page} (bytes {page * beton.page_size:,} to " in message


def test_the_first_sample_that_cannot_be_decoded_is_named(
    betons_to_damage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its number, offset and page, even if the digests match."""
    path = betons_to_damage / "jpg.beton"
    beton = read_index(path)
    for sample in (9, 4):
        patch(path, int(beton.offset[sample] + beton.size[sample] // 2), b"\xff\xd9" * 300)
    where = f"sample 4 at offset {beton.offset[4]:,} in page {beton.offset[4] // beton.page_size}"
    message = check_and_get_error(path, capsys)
    assert where in message
    assert "digest" in message
    update_digests(path)
    message = check_and_get_error(path, capsys)
    assert where in message
    assert "digest" not in message


def test_flipped_bits_are_detected_wherever_they_are(
    betons_to_damage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 positions in the whole file, the records, the table and the header: one line each, no crash."""
    path = betons_to_damage / "jpg.beton"
    content = path.read_bytes()
    data_start = read_index(path).data_start
    assert data_start == SAMPLES_START + 12 * SAMPLE
    rng = np.random.default_rng(0)
    positions = [*rng.integers(0, len(content), 40), *rng.integers(0, data_start, 40)]
    positions += [*rng.integers(len(content) - 12 * ALLOCATION, len(content), 40), *range(HEADER)]
    for position in positions:
        flip_bits(path, int(position))
        message = check_and_get_error(path, capsys)
        assert re.search("sample|page|FFCV|damaged|fields", message)
        patch(path, int(position), content[position : position + 1])
    assert main([str(path)]) == 0


def test_damaged_metadata_with_matching_digests_never_crashes_the_check(
    betons_to_damage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flips in the header, the records and the table, with digests computed after them: reported, or harmless."""
    path = betons_to_damage / "jpg.beton"
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    positions = [*range(HEADER), *rng.integers(HEADER, SAMPLES_START + 12 * SAMPLE, 60)]
    positions += rng.integers(len(content) - 12 * ALLOCATION, len(content), 60).tolist()
    codes = []
    for position in positions:
        flip_bits(path, int(position))
        update_digests(path)
        codes.append(main([str(path)]))
        assert capsys.readouterr().err.count("\n") == codes[-1]
        patch(path, int(position), content[position : position + 1])
    assert codes.count(1) > 60


# Each function damages a file, and returns a regular expression of the message.


def truncated_by_one_record(path: Path) -> str:
    os.truncate(path, path.stat().st_size - 24)
    return "is truncated"


def truncated_by_half(path: Path) -> str:
    os.truncate(path, path.stat().st_size // 2)
    return "is truncated"


def empty(path: Path) -> str:
    os.truncate(path, 0)
    return "is not an FFCV file"


def too_long(path: Path) -> str:
    with path.open("ab") as file:
        file.write(bytes(100))
    return "bytes instead of"


def not_an_ffcv_file(path: Path) -> str:
    path.write_bytes(b"PK\x03\x04" * 10_000)
    update_digests(path)
    return "is not an FFCV file of version 2"


def missing(path: Path) -> str:
    path.unlink()
    return "no such file"


def folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "no such file"


def label_out_of_range(path: Path) -> str:
    patch(path, SAMPLES_START + 5 * SAMPLE + 16, struct.pack("<q", 3))
    update_digests(path)
    return "sample 5 at offset [0-9,]+ with label 3 is damaged: its label is not in 0 to 2"


def negative_label(path: Path) -> str:
    patch(path, SAMPLES_START + 5 * SAMPLE + 16, struct.pack("<q", -1))
    update_digests(path)
    return "sample 5 at offset [0-9,]+ with label -1"


def other_label(path: Path) -> str:
    labels = read_index(path).labels
    patch(path, SAMPLES_START + 16, struct.pack("<q", (labels[0] + 1) % 3))
    update_digests(path)
    return "class [abc] has [35] samples, but its manifest says 4"


def float_label(path: Path) -> str:
    patch(path, HEADER + FIELD, b"\0")
    update_digests(path)
    return r"fields image \(image\), label \(float\)"


def one_field(path: Path) -> str:
    patch(path, 2, b"\1\0")
    update_digests(path)
    return r"fields image \(image\), not"


def too_many_samples(path: Path) -> str:
    patch(path, 8, struct.pack("<Q", 1 << 60))
    update_digests(path)
    return "too short for"


def too_few_samples(path: Path) -> str:
    patch(path, 8, struct.pack("<Q", 11))
    update_digests(path)
    return "has 11 samples, but its manifest says 12"


def offset_out_of_range(path: Path) -> str:
    table = path.stat().st_size - 12 * ALLOCATION
    for position in (SAMPLES_START + 2 * SAMPLE + 5, table + 2 * ALLOCATION + 8):
        patch(path, position, struct.pack("<Q", (1 << 64) - 8))
    update_digests(path)
    return "sample 2 at offset [0-9,]+ with label [012] is damaged: its image lies outside"


def other_height(path: Path) -> str:
    patch(path, SAMPLES_START + 3 * SAMPLE + 3, struct.pack("<H", 200))
    update_digests(path)
    return "sample 3 at offset"


def sample_listed_twice(path: Path) -> str:
    patch(path, path.stat().st_size - ALLOCATION, struct.pack("<Q", 3))
    update_digests(path)
    return "does not list each sample once"


def other_sha256(path: Path) -> str:
    update_digests(path, sha256=hashlib.sha256(b"other").hexdigest())
    return "is not the file that its manifest describes"


def no_manifest(path: Path) -> str:
    manifest_path(path).unlink()
    return r"\.beton\.json does not exist"


def other_sizes(path: Path) -> str:
    content = json.loads(manifest_path(path).read_text())
    update_digests(path, image=content["image"] | {"max_width": 499})
    return "smallest and largest image sizes"


@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize(
    "damage",
    [
        *(truncated_by_one_record, truncated_by_half, empty, too_long, not_an_ffcv_file, missing, folder),
        *(label_out_of_range, negative_label, other_label, float_label, one_field, too_many_samples, too_few_samples),
        *(offset_out_of_range, other_height, sample_listed_twice, other_sha256, no_manifest, other_sizes),
    ],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_reported_in_one_line(
    damage: Callable[[Path], str], mode: str, betons_to_damage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1; where possible, the digests are those of the damaged file, so that they reveal nothing."""
    path = betons_to_damage / f"{mode}.beton"
    message = damage(path)
    assert re.search(message, check_and_get_error(path, capsys))
