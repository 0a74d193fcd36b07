"""The C++ decoder: Pillow's pixels, only where the crop lies, and never those of a damaged image."""

import ctypes
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import small_config
from numpy.typing import NDArray
from PIL import Image

from vit.data.beton import JPEG, RAW, open_beton
from vit.data.decode import CentreCrop, Decoder, RandomCrop, native_library, resolve

pytestmark = pytest.mark.skipif(native_library() is None, reason="the C++ decoder was not built")

Pixels = NDArray[np.uint8]
BITS = 22  # of Pillow's weights


def photograph(height: int, width: int, seed: int) -> Pixels:
    """Colours, edges and grain: (height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    smooth = np.stack([128 + 70 * np.sin(9 * x + 5 * y + c) + 50 * np.sin(40 * x * y + c) for c in range(3)], axis=2)
    smooth[height // 4 : height // 2, width // 3 :] = random.integers(0, 256, 3)
    return (smooth + random.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def jpeg(pixels: Pixels, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def native(mode: int, data: bytes, shape: tuple[int, ...], box: tuple[int, int, int, int], S: int) -> Pixels | None:
    """The C++ decoder's crop (top, left, height, width) of one image, or None for a damaged one: (S, S, 3)."""
    library = native_library()
    assert library is not None
    image = np.array([mode, *shape[:2], 0, len(data), *box, S, S, 0, 0], np.int64)
    out = np.zeros((S, S, 3), np.uint8)
    memory = np.frombuffer(data, np.uint8)
    damaged = library.vit_decode_windows(memory.ctypes.data, 1, image.ctypes.data, S, 0, out.ctypes.data)
    return None if damaged >= 0 else out


def weights(size: int, S: int) -> NDArray[np.int64]:
    """Pillow's antialiased bilinear weights as a matrix: (S, size)."""
    out = np.zeros((S, size), np.int64)
    scale = size / S
    support = max(scale, 1.0)
    for i in range(S):
        centre = (i + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        exact = [max(0.0, 1 - abs((k - centre + 0.5) * (1 / support))) for k in range(low, high)]
        out[i, low:high] = [int(0.5 + w / sum(exact) * (1 << BITS)) for w in exact]
    return out


def resized(pixels: Pixels, S: int) -> Pixels:
    """Pillow's algorithm in the open: rows, rounded to 8 bits, then columns: (h, w, 3) -> (S, S, 3)."""
    half = 1 << (BITS - 1)
    rows = ((np.einsum("sw,hwc->hsc", weights(pixels.shape[1], S), pixels.astype(np.int64)) + half) >> BITS).clip(
        0, 255
    )
    columns = ((np.einsum("th,hsc->tsc", weights(pixels.shape[0], S), rows) + half) >> BITS).clip(0, 255)
    return columns.astype(np.uint8)


def crops(count: int) -> list[tuple[Pixels, tuple[int, int, int, int], int]]:
    """Images, boxes inside of them and sizes; some boxes are the whole image, some a pixel wide."""
    random = np.random.default_rng(1)
    out = []
    for i in range(count):
        h, w = (int(n) for n in random.integers(1 if i % 7 == 0 else 20, 200, 2))
        ch, cw = (h, w) if i % 5 == 0 else (int(random.integers(1, h + 1)), int(random.integers(1, w + 1)))
        top, left = int(random.integers(0, h - ch + 1)), int(random.integers(0, w - cw + 1))
        out.append((photograph(h, w, i), (top, left, ch, cw), int(random.choice([16, 28, 64, 96]))))
    return out


def test_crops_are_resized_as_pillow_does_to_the_bit() -> None:
    """Against the algorithm written in numpy, and within one level of whichever Pillow is installed.

    Pillow up to 12 gives the same bits; Pillow 13 resizes some tall crops in the other direction first.
    """
    for pixels, (top, left, h, w), S in crops(60):
        ours = native(RAW, pixels.tobytes(), pixels.shape, (top, left, h, w), S)
        assert ours is not None
        crop = pixels[top : top + h, left : left + w]
        assert np.array_equal(ours, resized(crop, S))
        pillows = np.asarray(Image.fromarray(crop).resize((S, S), Image.Resampling.BILINEAR))
        assert np.abs(ours.astype(int) - pillows).max() <= 1


@pytest.mark.parametrize("options", [{"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (False, True)])
def test_a_partly_decoded_jpeg_has_the_pixels_of_the_whole_one(options: dict[str, object]) -> None:
    """Also at the edges of the crop, where colours are interpolated from pixels outside of it."""
    for pixels, box, S in crops(40):
        data = jpeg(pixels, quality=85, **options)
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        expected = native(RAW, whole.tobytes(), whole.shape, box, S)
        ours = native(JPEG, data, whole.shape, box, S)
        assert ours is not None
        assert np.array_equal(ours, expected), (whole.shape, box, S)


def test_a_grey_jpeg_becomes_grey_in_three_channels() -> None:
    """As Pillow's convert("RGB") does."""
    data = jpeg(photograph(60, 80, 0)[:, :, 0])
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    ours = native(JPEG, data, whole.shape, (10, 5, 40, 60), 32)
    assert ours is not None
    assert np.array_equal(ours, resized(whole[10:50, 5:65], 32))


def test_a_damaged_jpeg_is_told_and_the_next_one_is_right() -> None:
    """Cut short before the crop's end, no JPEG at all, or of another size than its record says."""
    pixels = photograph(120, 160, 3)
    data, box = jpeg(pixels), (40, 30, 70, 100)
    good = native(JPEG, data, pixels.shape, box, 64)
    assert good is not None
    for broken in (data[: len(data) // 3], b"", b"not a picture", data[:20] + bytes(200) + data[220:]):
        assert native(JPEG, broken, pixels.shape, box, 64) is None
        again = native(JPEG, data, pixels.shape, box, 64)
        assert again is not None
        assert np.array_equal(again, good)
    assert native(JPEG, data, (160, 120), box, 64) is None


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_processor_without_avx2_sees_the_same_pixels(tmp_path: Path) -> None:
    """The nodes of a cluster may differ; a run that moves between them must not."""
    source, built = Path(__file__).parents[1] / "vit" / "data" / "native.cpp", tmp_path / "portable.so"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-DPORTABLE"]
    subprocess.run(["g++", *flags, str(source), "-o", str(built), "-ljpeg"], check=True)
    portable, ours = ctypes.CDLL(str(built)), native_library()
    assert ours is not None
    for pixels, box, S in crops(40):
        image = np.array([RAW, *pixels.shape[:2], 0, pixels.nbytes, *box, S, S, 0, 0], np.int64)
        out = np.zeros((2, S, S, 3), np.uint8)
        for library, place in zip((ours, portable), out, strict=True):
            library.vit_decode_windows.argtypes = ours.vit_decode_windows.argtypes
            library.vit_decode_windows(pixels.ctypes.data, 1, image.ctypes.data, S, 0, place.ctypes.data)
        assert np.array_equal(*out)


def test_both_decoders_see_the_same_pictures(jpegs: Path) -> None:
    """They resize differently, so that a run does not change from one to the other; the pictures are alike."""
    beton = open_beton(jpegs)
    samples = np.arange(len(beton))
    for crop, decibels in ((CentreCrop(1.0), 30), (RandomCrop(0, (0.3, 1.0), (0.75, 4 / 3)), 27)):
        ours, ffcvs = np.empty((2, len(beton), 64, 64, 3), np.uint8)
        Decoder(beton, crop, 64, "native").decode(samples * 0, samples, ours)
        Decoder(beton, crop, 64, "ffcv").decode(samples * 0, samples, ffcvs)
        noise = np.square(ours.astype(float) - ffcvs).mean()
        assert 10 * np.log10(255**2 / noise) > decibels


def test_auto_takes_the_native_decoder_where_it_is_built(jpegs: Path) -> None:
    """And a run remembers which one it began with, as a part of its recipe."""
    assert resolve("auto") == "native"
    assert resolve("ffcv") == "ffcv"
    assert small_config(jpegs).data.decoder == "auto"
