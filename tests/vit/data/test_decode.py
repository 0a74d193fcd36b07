"""The C++ decoder's pixels: those of Pillow and torchvision, bit for bit, from decoding only the crop."""

import ctypes
import io
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.v2.functional as F
from PIL import Image

from tests.helpers.data_sets import JPEGS, small_config
from tests.helpers.decoding import beton_of_one_jpeg, decode_native, random_crops
from tests.helpers.images import Pixels, encode_jpeg, photograph_array, psnr
from tests.helpers.loading import decoded
from tests.helpers.paths import ROOT
from vit.data.decode import CenterCrop, Decoder, RandomCrop, native_library, resolve_decoder
from vit.data.ffcv_format import JPEG, RAW

pytestmark = pytest.mark.skipif(native_library() is None, reason="the C++ decoder was not built")

KINDS = ("bilinear", "bicubic")
TALL = [(300, 200), (1000, 3), (3000, 1), (1, 3000), (225, 224), (224, 225), (226, 224), (448, 336), (449, 336)]


def resized(
    pixels: Pixels,
    height: int,
    width: int,
    kind: str = "bilinear",
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Pillow's resize of an image, or of a box of it (left, top, right, bottom): (h, w, 3) -> (height, width, 3)."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling[kind.upper()], box))


def columns_first(pixels: Pixels, height: int, width: int) -> bool:
    """Whether Pillow resizes the columns of this image before the rows."""
    return pixels.shape[0] > height and pixels.shape[0] - height > 2 * (pixels.shape[1] - width)


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_resized_as_by_pillow_bit_for_bit(kind: str) -> None:
    """Pillow resizes the columns of tall crops first; clipped noise shows the order of the passes most."""
    random, tall = np.random.default_rng(0), 0
    for i, (pixels, (top, left, h, w), S) in enumerate(random_crops(200)):
        image = random.integers(0, 2, pixels.shape, np.uint8) * 255 if i % 2 else pixels
        ours = decode_native(RAW, image.tobytes(), image.shape, (top, left, h, w), S, cubic=kind == "bicubic")
        crop = image[top : top + h, left : left + w]
        assert np.array_equal(ours, resized(crop, S, S, kind)), (crop.shape, S)
        tall += columns_first(crop, S, S)
    assert 20 < tall < 180


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", TALL)
def test_windows_of_tall_and_thin_images_have_pillows_pixels(shape: tuple[int, int], kind: str) -> None:
    """Where only a part of the resized image is computed, from a JPEG and from raw pixels."""
    pixels = np.random.default_rng(0).integers(0, 2, (*shape, 3), np.uint8) * 255
    data = encode_jpeg(pixels, quality=90)
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for height, width, top, left in ((64, 64, 0, 0), (90, 70, 13, 5), (224, 224, 160, 160), (500, 64, 436, 0)):
        expected = resized(whole, height, width, kind)[top : top + 64, left : left + 64]
        for mode, content in ((JPEG, data), (RAW, whole.tobytes())):
            window, cubic = (height, width, top, left), kind == "bicubic"
            ours = decode_native(mode, content, shape, (0, 0, *shape), 64, window, cubic=cubic)
            assert np.array_equal(ours, expected), (mode, window)


@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (False, True)),
        {"quality": 100, "subsampling": 0},  # many coefficients per block, many with long codes
        {"quality": 100, "optimize": True},  # Huffman tables optimized for the image
        {"quality": 20},
        {"restart_marker_rows": 2},
    ],
)
def test_a_partly_decoded_jpeg_has_the_pixels_of_the_whole_jpeg(options: dict[str, object]) -> None:
    """Also at the edges of the crop, where chroma is interpolated from pixels outside of the crop."""
    for pixels, box, S in random_crops(40):
        data = encode_jpeg(pixels, **{"quality": 85} | options)
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        expected = decode_native(RAW, whole.tobytes(), whole.shape, box, S)
        ours = decode_native(JPEG, data, whole.shape, box, S)
        assert ours is not None
        assert np.array_equal(ours, expected), (whole.shape, box, S)


def test_huffman_codes_of_sixteen_bits_are_decoded() -> None:
    """An image with noisy and smooth regions, whose rarest coefficients have codes of the maximum length."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (600, 800, 3), np.uint8)
    pixels[:, :400] //= 16
    pixels[100:200] = photograph_array(100, 800, 0)
    for options in ({"quality": 100}, {"quality": 95, "optimize": True}, {"quality": 60, "optimize": True}):
        data = encode_jpeg(pixels, **options)
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        ours = decode_native(JPEG, data, whole.shape, (0, 0, 600, 800), 224)
        assert ours is not None
        assert np.array_equal(ours, decode_native(RAW, whole.tobytes(), whole.shape, (0, 0, 600, 800), 224))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_scaled_jpeg_has_the_pixels_of_the_whole_jpeg_decoded_at_that_scale(subsampling: int) -> None:
    """At 1/2, 1/4 and 1/8; boxes begin and end inside of scaled pixels."""
    pixels = photograph_array(300, 420, 5)
    data, random = encode_jpeg(pixels, quality=90, subsampling=subsampling), np.random.default_rng(0)
    for scale in (1, 2, 4, 8) * 8:
        h, w = (int(random.integers(16 * scale, 16 * 2 * scale)) for _ in range(2))
        top, left = int(random.integers(0, 300 - h)), int(random.integers(0, 420 - w))
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (420 // scale, 300 // scale))
        small = np.asarray(image)
        assert small.shape[0] == math.ceil(300 / scale)
        rows, columns = (slice(a // scale, -(-(a + n) // scale)) for a, n in ((top, h), (left, w)))
        y, x = top / scale - rows.start, left / scale - columns.start
        ours = decode_native(JPEG, data, pixels.shape, (top, left, h, w), 16, scaled=True)
        assert ours is not None
        assert np.array_equal(ours, resized(small[rows, columns], 16, 16, box=(x, y, x + w / scale, y + h / scale))), (
            scale,
            top,
            left,
            h,
            w,
        )


def test_a_grayscale_jpeg_is_decoded_to_three_equal_channels() -> None:
    """As by Pillow's convert("RGB")."""
    data = encode_jpeg(photograph_array(60, 80, 0)[:, :, 0])
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    ours = decode_native(JPEG, data, whole.shape, (10, 5, 40, 60), 32)
    assert ours is not None
    assert np.array_equal(ours, resized(whole[10:50, 5:65], 32, 32))


@pytest.mark.parametrize(
    ("backend", "difference", "decibels"), [("native", 0.3, 53.0), ("scaled", 1.5, 42.0), ("ffcv", 2.5, 37.0)]
)
def test_pixels_are_those_of_torchvision_within_bounds(backend: str, difference: float, decibels: float) -> None:
    """Random crops to 224: bounds of the mean absolute difference in levels and of the PSNR of each crop.

    The reference is torchvision's antialiased `resized_crop` of the whole decoded image, as PIL image and as tensor.
    """
    for i, (h, w) in enumerate(4 * [(350, 400)] + 2 * [(900, 1200)]):
        data = encode_jpeg(photograph_array(h, w, i), quality=90, subsampling=2 * (i % 2))
        beton = beton_of_one_jpeg(data, h, w)
        crop = RandomCrop(i, (0.08, 1.0), (0.75, 4 / 3))
        samples = np.zeros(1, np.int64)
        ours = np.empty((1, 224, 224, 3), np.uint8)
        Decoder(beton, crop, backend).decode(samples, samples, ours)
        box = [int(n[0]) for n in crop.boxes(samples, samples, np.array([h]), np.array([w]))]
        image = Image.open(io.BytesIO(data))
        pillows = np.asarray(F.resized_crop(image, *box, [224, 224], antialias=True))
        tensors = F.resized_crop(F.pil_to_tensor(image), *box, [224, 224], antialias=True).permute(1, 2, 0).numpy()
        for reference in (pillows, tensors):
            assert np.abs(ours[0].astype(float) - reference).mean() < difference
            assert psnr(ours[0], reference) > decibels
        if backend == "native":
            assert np.array_equal(ours[0], pillows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(350, 400), (500, 333), (90, 75), (301, 700), (256, 401), (40, 500), (1200, 300)])
def test_validation_pixels_are_those_of_torchvision(shape: tuple[int, int], kind: str) -> None:
    """Resize(256) and CenterCrop(224): equal on PIL images, and close on tensors."""
    data = encode_jpeg(photograph_array(*shape, 7), quality=90)
    ours, sample = np.empty((1, 224, 224, 3), np.uint8), np.zeros(1, np.int64)
    Decoder(beton_of_one_jpeg(data, *shape), CenterCrop(0.875), "native", interpolation=kind).decode(
        sample, sample, ours
    )
    image, mode = Image.open(io.BytesIO(data)), F.InterpolationMode(kind)
    pillows = np.asarray(F.center_crop(F.resize(image, [256], mode, antialias=True), [224]))
    small = F.resize(F.pil_to_tensor(image), [256], mode, antialias=True)
    tensors = F.center_crop(small, [224]).permute(1, 2, 0).numpy()
    assert np.array_equal(ours[0], pillows)
    # torchvision's own kernels resize the rows of tensors first, also those of tall images.
    assert np.abs(ours[0].astype(int) - tensors).max() <= (4 if shape[0] > 3 * shape[1] else 1)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_processor_without_avx2_decodes_the_same_pixels(tmp_path: Path) -> None:
    """A run may move between nodes with different processors."""
    source, built = ROOT / "vit" / "data" / "native.cpp", tmp_path / "portable.so"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-DPORTABLE"]
    subprocess.run(["g++", *flags, str(source), "-o", str(built), "-ljpeg"], check=True)
    portable, native = ctypes.CDLL(str(built)), native_library()
    assert native is not None
    for pixels, box, S in random_crops(40):
        image = np.array([RAW, *pixels.shape[:2], 0, pixels.nbytes, *box, S, S, 0, 0], np.int64)
        for cubic in (False, True):
            out = np.zeros((2, S, S, 3), np.uint8)
            for library, pixels_out in zip((native, portable), out, strict=True):
                library.vit_decode_windows.argtypes = native.vit_decode_windows.argtypes
                library.vit_decode_windows(
                    pixels.ctypes.data, 1, image.ctypes.data, S, 0, cubic, pixels_out.ctypes.data
                )
            assert np.array_equal(*out)


def test_the_native_and_the_ffcv_decoder_give_similar_images(jpegs: Path) -> None:
    """They resize differently, so the pixels differ, but not the crops."""
    samples = np.arange(JPEGS)
    for crop, decibels in ((CenterCrop(1.0), 30), (RandomCrop(0, (0.3, 1.0), (0.75, 4 / 3)), 27)):
        native, ffcv = (decoded(jpegs, crop, 64, samples, backend=backend) for backend in ("native", "ffcv"))
        assert psnr(native, ffcv) > decibels


def test_auto_selects_the_native_decoder_if_it_was_built(jpegs: Path) -> None:
    """Also for bicubic interpolation, which FFCV's decoder does not have."""
    assert resolve_decoder("auto") == "native"
    assert resolve_decoder("ffcv") == "ffcv"
    assert resolve_decoder("auto", "bicubic") == "native"
    assert small_config(jpegs).data.decoder == "auto"
