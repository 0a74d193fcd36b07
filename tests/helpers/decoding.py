"""Calls the C++ decoder on single images."""

from pathlib import Path

import numpy as np

from tests.helpers.images import Pixels, photograph_array
from vit.data.beton import Beton
from vit.data.decode import native_library
from vit.data.ffcv_format import JPEG
from vit.data.storage import MemoryStorage

Box = tuple[int, int, int, int]  # top, left, height, width


def beton_of_one_jpeg(data: bytes, height: int, width: int) -> Beton:
    """A data set with one JPEG."""
    sample = {"labels": 0, "mode": JPEG, "height": height, "width": width, "offset": 0, "size": len(data)}
    arrays = {name: np.full(1, value) for name, value in sample.items()}
    storage = MemoryStorage(np.frombuffer(data, np.uint8))
    return Beton(
        path=Path("one"), classes=[], names=None, sha256="", page_size=1, pages=[], bytes=0, storage=storage, **arrays
    )


def decode_native(
    mode: int,
    data: bytes,
    shape: tuple[int, ...],
    box: Box,
    S: int,
    window: Box | None = None,
    scaled: bool = False,
    cubic: bool = False,
) -> Pixels | None:
    """The C++ decoder's crop of one image, or None if the image is damaged: (S, S, 3).

    The box is resized to S x S pixels, or to the height and width in `window`, whose other two numbers are the top left
    corner of the S x S output pixels.
    """
    library = native_library()
    assert library is not None
    image = np.array([mode, *shape[:2], 0, len(data), *box, *(window or (S, S, 0, 0))], np.int64)
    out = np.zeros((S, S, 3), np.uint8)
    memory = np.frombuffer(data, np.uint8)
    damaged = library.vit_decode_windows(memory.ctypes.data, 1, image.ctypes.data, S, scaled, cubic, out.ctypes.data)
    return None if damaged >= 0 else out


def random_crops(count: int) -> list[tuple[Pixels, Box, int]]:
    """Images with a box inside of each and an output size; some boxes are the whole image, some images a pixel wide."""
    random = np.random.default_rng(1)
    out = []
    for i in range(count):
        h, w = (int(n) for n in random.integers(1 if i % 7 == 0 else 20, 200, 2))
        ch, cw = (h, w) if i % 5 == 0 else (int(random.integers(1, h + 1)), int(random.integers(1, w + 1)))
        top, left = int(random.integers(0, h - ch + 1)), int(random.integers(0, w - cw + 1))
        out.append((photograph_array(h, w, i), (top, left, ch, cw), int(random.choice([16, 28, 64, 96]))))
    return out
