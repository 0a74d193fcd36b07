"""Odd image files of every kind, compared with Pillow's own conversion."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.beton_reader import read_beton_index
from data_prep.check_beton import main as check_beton
from data_prep.recipe import Recipe
from data_prep.sources.source import Source
from data_prep.write_beton import write
from tests.helpers.image_files import Pixels, save_bytes
from tests.helpers.images import psnr
from tests.helpers.odd_images import expected_pixels, odd_images
from tests.helpers.write_command import stored_images
from vit.data.ffcv_format import JPEG
from vit.data.native import decode_jpeg, native_library

FILES = dict(odd_images())


@pytest.fixture(scope="module")
def expected() -> dict[str, Pixels]:
    """Pillow's pixels of each file."""
    return {name: expected_pixels(content) for name, content in FILES.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """All files, in order; their names say nothing about their formats."""
    folder = tmp_path_factory.mktemp("odd")
    paths = [str(save_bytes(folder / f"{i}.jpg", content)) for i, content in enumerate(FILES.values())]
    return Source(("only",), paths, np.zeros(len(paths), np.int64))


def write_and_check(out: Path, source: Source, mode: str) -> Iterator[tuple[str, Pixels, bytes, int]]:
    """Writes the files; yields the name, the pixels, the stored bytes and the storage mode of each."""
    manifest = write(source, out, Recipe(source="odd", mode=mode, shuffle=False, quality=95), 2)
    assert not manifest.left_out
    assert not manifest.defects
    assert check_beton([str(out)]) == 0
    index = read_beton_index(out, 1)
    with out.open("rb") as file:
        for sample, (name, stored) in enumerate(zip(FILES, stored_images(out), strict=True)):
            yield name, index.read_pixels(file.fileno(), sample), stored, int(index.mode[sample])


def test_raw_files_store_the_pixels_of_pillow(source: Source, expected: dict[str, Pixels], tmp_path: Path) -> None:
    """Not one level of difference in about 300 files."""
    assert len(FILES) > 250
    for name, pixels, _, _ in write_and_check(tmp_path / "raw.beton", source, "raw"):
        assert np.array_equal(pixels, expected[name]), name


def test_jpg_files_store_copies_or_close_pixels(source: Source, expected: dict[str, Pixels], tmp_path: Path) -> None:
    """A copied JPEG has the same bytes, and decoding it gives Pillow's pixels; others are encoded at quality 95."""
    copied = 0
    for name, pixels, stored, mode in write_and_check(tmp_path / "jpg.beton", source, "jpg"):
        assert mode == JPEG
        assert pixels.shape == expected[name].shape, name
        if stored == FILES[name]:
            copied += 1
            if native_library():
                assert np.array_equal(decode_jpeg(stored, *pixels.shape[:2]).pixels, expected[name]), name
        elif min(pixels.shape[:2]) > 8:  # others have no room for chroma at half the resolution
            assert psnr(pixels, expected[name]) > 20, name
    assert copied > 20
