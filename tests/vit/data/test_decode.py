"""The C++ decoder: Pillow's pixels, only where the crop lies, and never those of a damaged image."""

import ctypes
import io
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.data_sets import small_config
from tests.helpers.paths import ROOT
from vit.data.beton import Beton, open_beton
from vit.data.decode import CenterCrop, Decoder, RandomCrop, native_library, resolve
from vit.data.ffcv_format import JPEG, RAW
from vit.data.storage import Shared

pytestmark = pytest.mark.skipif(native_library() is None, reason="the C++ decoder was not built")

Pixels = NDArray[np.uint8]
BITS = 22  # of Pillow's weights


def photograph(height: int, width: int, seed: int) -> Pixels:
    """Colors, edges and grain: (height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    smooth = np.stack([128 + 70 * np.sin(9 * x + 5 * y + c) + 50 * np.sin(40 * x * y + c) for c in range(3)], axis=2)
    smooth[height // 4 : height // 2, width // 3 :] = random.integers(0, 256, 3)
    return (smooth + random.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def jpeg(pixels: Pixels, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def one_image(data: bytes, height: int, width: int) -> Beton:
    """A data set of one JPEG."""
    one = {"labels": 0, "mode": JPEG, "height": height, "width": width, "offset": 0, "size": len(data)}
    arrays = {name: np.full(1, value) for name, value in one.items()}
    storage = Shared(np.frombuffer(data, np.uint8))
    return Beton(path=Path("one"), classes=[], sha256="", page_size=1, pages=[], bytes=0, storage=storage, **arrays)


def native(
    mode: int,
    data: bytes,
    shape: tuple[int, ...],
    box: tuple[int, int, int, int],
    S: int,
    window: tuple[int, int, int, int] | None = None,
    scaled: bool = False,
    cubic: bool = False,
) -> Pixels | None:
    """The C++ decoder's crop (top, left, height, width) of one image, or None for a damaged one: (S, S, 3).

    The crop is resized to S x S, or to `window`'s rows and columns, of which S x S are taken from its corner on.
    """
    library = native_library()
    assert library is not None
    image = np.array([mode, *shape[:2], 0, len(data), *box, *(window or (S, S, 0, 0))], np.int64)
    out = np.zeros((S, S, 3), np.uint8)
    memory = np.frombuffer(data, np.uint8)
    damaged = library.vit_decode_windows(memory.ctypes.data, 1, image.ctypes.data, S, scaled, cubic, out.ctypes.data)
    return None if damaged >= 0 else out


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def cubic(x: float) -> float:
    """Keys's, with a = -1/2, in the form that Pillow computes."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


FILTERS = {  # Pillow's name for each, how far it reaches, and its weights
    "bilinear": (Image.Resampling.BILINEAR, 1.0, triangle),
    "bicubic": (Image.Resampling.BICUBIC, 2.0, cubic),
}


def weights(
    size: int, S: int, start: float = 0.0, length: float | None = None, kind: str = "bilinear"
) -> NDArray[np.int64]:
    """Pillow's antialiased weights as a matrix, of `length` pixels from `start` on: (S, size)."""
    out = np.zeros((S, size), np.int64)
    scale = (length or size) / S
    _, reach, weight = FILTERS[kind]
    wide = max(scale, 1.0)
    support = reach * wide
    for i in range(S):
        center = start + (i + 0.5) * scale
        low, high = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        exact = [weight((k - center + 0.5) * (1 / wide)) for k in range(low, high)]
        shares = [w / sum(exact) for w in exact]
        out[i, low:high] = [int((0.5 if w >= 0 else -0.5) + w * (1 << BITS)) for w in shares]
    return out


def resized(pixels: Pixels, S: int, kind: str = "bilinear") -> Pixels:
    """Pillow's algorithm in the open: (h, w, 3) -> (S, S, 3)."""
    return weighted(pixels, weights(pixels.shape[0], S, kind=kind), weights(pixels.shape[1], S, kind=kind))


def weighted(pixels: Pixels, down: NDArray[np.int64], across: NDArray[np.int64]) -> Pixels:
    """Rows, rounded to 8 bits, then columns: (h, w, 3), (T, h), (S, w) -> (T, S, 3)."""
    half = 1 << (BITS - 1)
    rows = ((np.einsum("sw,hwc->hsc", across, pixels.astype(np.int64)) + half) >> BITS).clip(0, 255)
    return ((np.einsum("th,hsc->tsc", down, rows) + half) >> BITS).clip(0, 255).astype(np.uint8)


def decibels(a: Pixels, b: Pixels) -> float:
    """Peak signal to noise ratio; infinite if they are the same."""
    noise = np.square(a.astype(float) - b).mean()
    return 10 * math.log10(255**2 / noise) if noise else math.inf


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


@pytest.mark.parametrize("kind", FILTERS)
def test_crops_are_resized_as_pillow_does_to_the_bit(kind: str) -> None:
    """Against the algorithm written in numpy, and whichever Pillow is installed.

    Pillow up to 12 gives the same bits; Pillow 13 does so too, but for some tall crops, whose columns it takes first.
    """
    either = int(PIL.__version__.split(".")[0]) > 12
    columns_first = 0
    for pixels, (top, left, h, w), S in crops(60):
        ours = native(RAW, pixels.tobytes(), pixels.shape, (top, left, h, w), S, cubic=kind == "bicubic")
        assert ours is not None
        crop = pixels[top : top + h, left : left + w]
        assert np.array_equal(ours, resized(crop, S, kind))
        pillows = np.asarray(Image.fromarray(crop).resize((S, S), FILTERS[kind][0]))
        if not np.array_equal(ours, pillows):
            turned = resized(crop.transpose(1, 0, 2), S, kind).transpose(1, 0, 2)
            assert either and h > w and np.array_equal(pillows, turned)
            columns_first += 1
    assert columns_first < 20


@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (False, True)),
        {"quality": 100, "subsampling": 0},  # blocks full of coefficients, of which many have long codes
        {"quality": 100, "optimize": True},  # codes of the image's own
        {"quality": 20},
        {"restart_marker_rows": 2},
    ],
)
def test_a_partly_decoded_jpeg_has_the_pixels_of_the_whole_one(options: dict[str, object]) -> None:
    """Also at the edges of the crop, where colors are interpolated from pixels outside of it."""
    for pixels, box, S in crops(40):
        data = jpeg(pixels, **{"quality": 85} | options)
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        expected = native(RAW, whole.tobytes(), whole.shape, box, S)
        ours = native(JPEG, data, whole.shape, box, S)
        assert ours is not None
        assert np.array_equal(ours, expected), (whole.shape, box, S)


def test_codes_of_sixteen_bits_are_read() -> None:
    """Noise beside calm, so that the rarest coefficients have the longest codes that there are."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (600, 800, 3), np.uint8)
    pixels[:, :400] //= 16
    pixels[100:200] = photograph(100, 800, 0)
    for options in ({"quality": 100}, {"quality": 95, "optimize": True}, {"quality": 60, "optimize": True}):
        data = jpeg(pixels, **options)
        whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        ours = native(JPEG, data, whole.shape, (0, 0, 600, 800), 224)
        assert ours is not None
        assert np.array_equal(ours, native(RAW, whole.tobytes(), whole.shape, (0, 0, 600, 800), 224))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_scaled_jpeg_has_the_pixels_of_the_whole_one_scaled(subsampling: int) -> None:
    """At a half, a quarter and an eighth; boxes begin and end within the larger pixels."""
    pixels = photograph(300, 420, 5)
    data, random = jpeg(pixels, quality=90, subsampling=subsampling), np.random.default_rng(0)
    for scale in (1, 2, 4, 8) * 8:
        h, w = (int(random.integers(16 * scale, 16 * 2 * scale)) for _ in range(2))
        top, left = int(random.integers(0, 300 - h)), int(random.integers(0, 420 - w))
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (420 // scale, 300 // scale))
        small = np.asarray(image)
        assert small.shape[0] == math.ceil(300 / scale)
        rows, columns = (slice(a // scale, -(-(a + n) // scale)) for a, n in ((top, h), (left, w)))
        down, across = (
            weights(s.stop - s.start, 16, a / scale - s.start, n / scale)
            for s, a, n in ((rows, top, h), (columns, left, w))
        )
        ours = native(JPEG, data, pixels.shape, (top, left, h, w), 16, scaled=True)
        assert ours is not None
        assert np.array_equal(ours, weighted(small[rows, columns], down, across)), (scale, top, left, h, w)


def test_a_gray_jpeg_becomes_gray_in_three_channels() -> None:
    """As Pillow's convert("RGB") does."""
    data = jpeg(photograph(60, 80, 0)[:, :, 0])
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    ours = native(JPEG, data, whole.shape, (10, 5, 40, 60), 32)
    assert ours is not None
    assert np.array_equal(ours, resized(whole[10:50, 5:65], 32))


@pytest.mark.parametrize(
    ("kind", "difference", "least"), [("native", 0.3, 53.0), ("scaled", 1.5, 42.0), ("ffcv", 2.5, 37.0)]
)
def test_pixels_are_torchvisions_within_the_stated_bounds(kind: str, difference: float, least: float) -> None:
    """Random crops to 224: mean absolute difference in levels, and decibels, of the worst crop.

    The reference is the whole image decoded and torchvision's antialiased `resized_crop`, of PIL images and of tensors.
    """
    for i, (h, w) in enumerate(4 * [(350, 400)] + 2 * [(900, 1200)]):
        data = jpeg(photograph(h, w, i), quality=90, subsampling=2 * (i % 2))
        beton = one_image(data, h, w)
        crop = RandomCrop(i, (0.08, 1.0), (0.75, 4 / 3))
        samples = np.zeros(1, np.int64)
        ours = np.empty((1, 224, 224, 3), np.uint8)
        Decoder(beton, crop, 224, kind).decode(samples, samples, ours)
        box = [int(n[0]) for n in crop.boxes(samples, samples, np.array([h]), np.array([w]))]
        image = Image.open(io.BytesIO(data))
        pillows = np.asarray(F.resized_crop(image, *box, [224, 224], antialias=True))
        tensors = F.resized_crop(F.pil_to_tensor(image), *box, [224, 224], antialias=True).permute(1, 2, 0).numpy()
        for reference in (pillows, tensors):
            assert np.abs(ours[0].astype(float) - reference).mean() < difference
            assert decibels(ours[0], reference) > least
        if kind == "native" and int(PIL.__version__.split(".")[0]) <= 12:
            assert np.array_equal(ours[0], pillows)


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("shape", [(350, 400), (500, 333), (90, 75), (301, 700), (256, 401), (40, 500)])
def test_validation_pixels_are_torchvisions(shape: tuple[int, int], kind: str) -> None:
    """Resize(256) and CenterCrop(224): the same bits as on PIL images up to Pillow 12; else a level at most."""
    data = jpeg(photograph(*shape, 7), quality=90)
    ours, sample = np.empty((1, 224, 224, 3), np.uint8), np.zeros(1, np.int64)
    Decoder(one_image(data, *shape), CenterCrop(0.875), 224, "native", interpolation=kind).decode(sample, sample, ours)
    image, how = Image.open(io.BytesIO(data)), F.InterpolationMode(kind)
    pillows = np.asarray(F.center_crop(F.resize(image, [256], how, antialias=True), [224]))
    resized = F.resize(F.pil_to_tensor(image), [256], how, antialias=True)
    tensors = F.center_crop(resized, [224]).permute(1, 2, 0).numpy()
    exact = int(PIL.__version__.split(".")[0]) <= 12
    assert np.abs(ours[0].astype(int) - pillows).max() <= (0 if exact else 1)
    assert np.abs(ours[0].astype(int) - tensors).max() <= 1


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


@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_no_eight_bit_jpeg_in_colors_or_gray_is_refused(scaled: bool) -> None:
    """Four inks, twelve bits, no losses, codes that are not there: told, and the next image is right."""
    pixels = photograph(64, 64, 0)
    data, box = jpeg(pixels), (0, 0, 64, 64)
    frame, tables = data.index(b"\xff\xc0"), data.index(b"\xff\xc4")
    good = native(JPEG, data, pixels.shape, box, 16, scaled=scaled)
    assert good is not None
    inks = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(inks, "JPEG")
    twelve = data[: frame + 4] + b"\x0c" + data[frame + 5 :]
    lossless = data[: frame + 1] + b"\xc3" + data[frame + 2 :]
    no_tables = data[:tables] + data[data.index(b"\xff\xda") :]
    overfull = data[: tables + 5] + b"\xff" * 16 + data[tables + 21 :]
    for other in (inks.getvalue(), twelve, lossless, overfull):
        assert native(JPEG, other, pixels.shape, box, 16, scaled=scaled) is None
        assert np.array_equal(native(JPEG, data, pixels.shape, box, 16, scaled=scaled), good)
    native(JPEG, no_tables, pixels.shape, box, 16)  # libjpeg takes the standard ones instead


DECODE = """
import sys
import numpy as np
from vit.data.decode import native_library

library, data, images = native_library(), np.fromfile(sys.argv[1], np.uint8), np.load(sys.argv[2])
out = np.empty(32 * 32 * 3, np.uint8)
for i, image in enumerate(images):
    how = i % 2, i % 3 == 0  # scaled, cubic
    print(library.vit_decode_windows(data.ctypes.data, 1, image.ctypes.data, 32, *how, out.ctypes.data) + 1)
"""


def test_no_damage_crashes_the_decoder_and_much_of_it_is_told(tmp_path: Path) -> None:
    """Flipped bits, overwritten bytes, files cut short and damaged headers, 500 of each, in a process of their own.

    Most of an image's bits may be flipped and it is still a JPEG, of another picture: digests are for that.
    """
    random, kinds = np.random.default_rng(0), ("flip", "bytes", "cut", "header")
    options = ({}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1})
    whole = [jpeg(photograph(120, 160, i), quality=90, **option) for i, option in enumerate(options)]
    files, images, offset = [], [], 0
    for i in range(2000):
        data = bytearray(whole[i % len(whole)])
        body, end = data.index(b"\xff\xda") + 14, len(data)
        if (kind := kinds[i % 4]) == "flip":
            data[random.integers(body, end - 2)] ^= 1 << int(random.integers(8))
        elif kind == "bytes":
            data[(at := random.integers(body, end - 40)) : at + 20] = random.bytes(20)
        elif kind == "cut":
            del data[random.integers(0, end - 2) :]
        else:
            data[random.integers(2, body)] = int(random.integers(256))
        box = (0, 0, 120, 160) if i % 3 else (*random.integers(0, 60, 2), 60, 90)
        files.append(bytes(data))
        images.append([JPEG, 120, 160, offset, len(data), *box, 32, 32, 0, 0])
        offset += len(data)
    (tmp_path / "data").write_bytes(b"".join(files))
    np.save(tmp_path / "images.npy", np.array(images, np.int64))
    command = [sys.executable, "-c", DECODE, str(tmp_path / "data"), str(tmp_path / "images.npy")]
    root = ROOT
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = np.array(done.stdout.split(), int).reshape(500, 4).sum(axis=0)  # of each kind
    assert (told > (90, 250, 450, 150)).all(), dict(zip(kinds, told, strict=True))


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_processor_without_avx2_sees_the_same_pixels(tmp_path: Path) -> None:
    """The nodes of a cluster may differ; a run that moves between them must not."""
    source, built = ROOT / "vit" / "data" / "native.cpp", tmp_path / "portable.so"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-DPORTABLE"]
    subprocess.run(["g++", *flags, str(source), "-o", str(built), "-ljpeg"], check=True)
    portable, ours = ctypes.CDLL(str(built)), native_library()
    assert ours is not None
    for pixels, box, S in crops(40):
        image = np.array([RAW, *pixels.shape[:2], 0, pixels.nbytes, *box, S, S, 0, 0], np.int64)
        for cubic in (False, True):
            out = np.zeros((2, S, S, 3), np.uint8)
            for library, place in zip((ours, portable), out, strict=True):
                library.vit_decode_windows.argtypes = ours.vit_decode_windows.argtypes
                library.vit_decode_windows(pixels.ctypes.data, 1, image.ctypes.data, S, 0, cubic, place.ctypes.data)
            assert np.array_equal(*out)


def test_both_decoders_see_the_same_pictures(jpegs: Path) -> None:
    """They resize differently, so that a run does not change from one to the other; the pictures are alike."""
    beton = open_beton(jpegs)
    samples = np.arange(len(beton))
    for crop, decibels in ((CenterCrop(1.0), 30), (RandomCrop(0, (0.3, 1.0), (0.75, 4 / 3)), 27)):
        ours, ffcvs = np.empty((2, len(beton), 64, 64, 3), np.uint8)
        Decoder(beton, crop, 64, "native").decode(samples * 0, samples, ours)
        Decoder(beton, crop, 64, "ffcv").decode(samples * 0, samples, ffcvs)
        noise = np.square(ours.astype(float) - ffcvs).mean()
        assert 10 * np.log10(255**2 / noise) > decibels


def test_auto_takes_the_native_decoder_where_it_is_built(jpegs: Path) -> None:
    """And a run remembers which one it began with, as a part of its recipe."""
    assert resolve("auto") == "native"
    assert resolve("ffcv") == "ffcv"
    assert resolve("auto", "bicubic") == "native"
    assert small_config(jpegs).data.decoder == "auto"
