"""Opening .beton files: a file with any fault is refused with its name, and no fault crashes the process."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.data_sets import CLASSES, JPEGS, small_config
from tests.helpers.loading import decoded, flip_bit, overwrite, simulated_world
from tests.helpers.ranks import run_ranks
from vit.data.beton import open_beton
from vit.data.dataset_manifest import manifest_path
from vit.data.decode import CenterCrop, DecodeError
from vit.data.loader import TrainData, ValData

HEADER, FIELD, SAMPLE, ALLOCATION = 24, 1041, 24, 24  # bytes of FFCV's records


@pytest.mark.timeout(60)
def test_a_truncated_jpeg_is_an_error(jpegs_copy: Path) -> None:
    """Its first half is intact; FFCV itself would return gray pixels for the rest."""
    beton = open_beton(jpegs_copy)
    size = int(beton.size[5])
    overwrite(jpegs_copy, int(beton.offset[5]) + size // 2, bytes(size - size // 2))
    with pytest.raises(DecodeError, match="sample 5 "):
        decoded(jpegs_copy, CenterCrop(1.0), 28, np.arange(JPEGS))


def change_manifest(path: Path, **changes: Any) -> None:
    manifest = manifest_path(path)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 24)


def truncated_and_manifest_changed(path: Path) -> None:
    truncated(path)
    change_manifest(path, bytes=path.stat().st_size)


def manifest_missing(path: Path) -> None:
    manifest_path(path).unlink()


def file_missing(path: Path) -> None:
    path.unlink()


def manifest_of_another_format(path: Path) -> None:
    change_manifest(path, format="vit-beton-99")


def manifest_truncated(path: Path) -> None:
    os.truncate(manifest_path(path), 100)


def manifest_not_utf8(path: Path) -> None:
    manifest_path(path).write_bytes(b"\xff\xfe")


def manifest_is_a_list(path: Path) -> None:
    manifest_path(path).write_text("[]")


def manifest_without_digest(path: Path) -> None:
    manifest = json.loads(manifest_path(path).read_text())
    del manifest["sha256"]
    manifest_path(path).write_text(json.dumps(manifest))


def label_too_high(path: Path) -> None:
    overwrite(path, HEADER + 2 * FIELD + 9 * SAMPLE + 16, (CLASSES).to_bytes(8, "little"))


def label_negative(path: Path) -> None:
    overwrite(path, HEADER + 2 * FIELD + 9 * SAMPLE + 16, b"\xff" * 8)


def fields_swapped(path: Path) -> None:
    image = overwrite(path, HEADER, bytes(17))
    overwrite(path, HEADER, overwrite(path, HEADER + FIELD, image))


def more_samples_than_in_the_manifest(path: Path) -> None:
    change_manifest(path, samples=JPEGS - 1)


FAULTS = [
    (truncated, "bytes, but its manifest says"),
    (truncated_and_manifest_changed, "is damaged"),
    (manifest_missing, "json does not exist; if .* -m data_prep.describe_beton .* makes the manifest"),
    (file_missing, "is missing"),
    (manifest_of_another_format, "has format 'vit-beton-99', but this version reads only vit-beton-1"),
    (manifest_truncated, "json is damaged"),
    (manifest_not_utf8, "json is damaged"),
    (manifest_is_a_list, "has format None"),
    (manifest_without_digest, "no 'sha256'"),
    (label_too_high, "sample 9 of 64"),
    (label_negative, "sample 9 of 64"),
    (fields_swapped, r"version 2 and the fields \[\('image', 'image'\), \('label', 'int'\)\]"),
    (more_samples_than_in_the_manifest, "has 64 samples, but its manifest says 63"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_faulty_file_is_refused(fault: Any, message: str, jpegs_copy: Path) -> None:
    """Before the first step, with the name of the file and the fault."""
    cfg = small_config(jpegs_copy)
    fault(jpegs_copy)
    for kind in (TrainData, ValData):
        with pytest.raises(ValueError, match=message) as caught:
            kind(cfg, simulated_world())
        assert str(jpegs_copy) in str(caught.value)


def decode_with_flipped_bits(path: Path, regions: list[tuple[int, int]]) -> dict[str, int]:
    """Flips one bit at a time, in each region (start, length): how often the file was refused or decoded."""
    random = np.random.default_rng(0)
    counts = {"refused": 0, "decoded": 0}
    for start, length in regions:
        offset, bit = start + int(random.integers(length)), int(random.integers(8))
        flip_bit(path, offset, bit)
        try:
            decoded(path, CenterCrop(1.0), 8, np.arange(JPEGS))
            counts["decoded"] += 1
        except (ValueError, DecodeError) as error:
            assert str(path) in str(error)  # noqa: PT017
            counts["refused"] += 1
        flip_bit(path, offset, bit)
    return counts


def test_no_flipped_bit_in_the_records_of_a_file_crashes_the_process(jpegs_copy: Path) -> None:
    """The file is refused, or decodes within its bounds: FFCV's C code never reads outside of it."""
    table = jpegs_copy.stat().st_size - JPEGS * ALLOCATION
    regions = [
        (0, HEADER),
        (HEADER, 17),
        (HEADER + FIELD, 17),
        (HEADER + 2 * FIELD, JPEGS * SAMPLE),
        (table, JPEGS * ALLOCATION),
    ]

    (counts,) = run_ranks(1, decode_with_flipped_bits, jpegs_copy, regions * 60)  # in another process, which may crash
    assert isinstance(counts, dict), f"killed by signal {-counts}"
    assert min(counts.values()) > 50  # some bits are not used
    assert decoded(jpegs_copy, CenterCrop(1.0), 8, np.arange(JPEGS)).any()  # the restored file is intact
