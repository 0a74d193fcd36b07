"""Pixels of samples: crops by counter, decoded and resized in C.

FFCV draws its crops from numba's thread-local generator, which no seed makes reproducible; ours are a pure function of
(seed, view, sample).  Only + - * / and square roots are used on the way, which IEEE 754 rounds the same everywhere.

Shapes: B samples, S side of the output in pixels.
"""

import ctypes
import functools
import importlib.machinery
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit.data.beton import Beton
from vit.data.ffcv_format import JPEG, ffcv_library
from vit.random_keys import U64, Stream, keys, uniform

Ints = NDArray[np.int64]

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop and FFCV's
_NATIVE = ("native", "scaled")  # decoders of `native.cpp`
_RATIOS = 4096  # steps of the aspect ratio, evenly spaced in its logarithm


class DamagedDataError(RuntimeError):
    """Bytes of a data set that are not what was written.  The message names the file and the place."""


class DecodeError(DamagedDataError):
    """A sample whose bytes are no image."""

    def __init__(self, beton: Beton, sample: int) -> None:
        place = f"{beton.size[sample]} bytes at offset {beton.offset[sample]}"
        super().__init__(f"{beton.path}: sample {sample}, {place}, is no whole JPEG")
        self.sample = sample


class Boxes(NamedTuple):
    """Crops, in pixels of their images: 4 x (B,)."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints


class Windows(NamedTuple):
    """What is wanted of images, in pixels: a box, resized to `rows` x `columns`, and S x S out of these: 8 x (B,)."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    rows: Ints
    columns: Ints
    down: Ints  # corner of the S x S
    right: Ints


@dataclass(frozen=True)
class RandomCrop:
    """A box of random area and aspect ratio: torchvision's RandomResizedCrop, drawn by counter."""

    seed: int
    scale: tuple[float, float]  # area over the image's
    ratio: tuple[float, float]  # width over height

    def boxes(self, views: Ints, samples: Ints, height: Ints, width: Ints) -> Boxes:
        """The first of ten draws that fits; else the largest centered box of an allowed ratio: 4 x (B,) -> 4 x (B,)."""
        key = keys(Stream.CROP, self.seed, views, samples)
        top, left, h, w = _draw(key, height, width, self.scale, _ratio_table(*self.ratio))
        fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        first = fits.argmax(axis=0)[None]
        random = (np.take_along_axis(values, first, axis=0)[0] for values in (top, left, h, w))
        fallback = _centered(
            height,
            width,
            np.floor(width / self.ratio[0] + 0.5).astype(np.int64).clip(1, height),
            np.floor(height * self.ratio[1] + 0.5).astype(np.int64).clip(1, width),
        )
        return Boxes(*(np.where(fits.any(axis=0), r, f) for r, f in zip(random, fallback, strict=True)))

    def windows(self, views: Ints, samples: Ints, height: Ints, width: Ints, side: int) -> Windows:
        """The boxes, each resized to `side` x `side`: 4 x (B,) -> 8 x (B,)."""
        size, corner = np.full_like(samples, side), np.zeros_like(samples)
        return Windows(*self.boxes(views, samples, height, width), size, size, corner, corner)


@dataclass(frozen=True)
class CenterCrop:
    """A centered square: `Resize(256)` and `CenterCrop(224)` when `share` is 224 / 256."""

    share: float  # side over the image's shorter side

    def boxes(self, views: Ints, samples: Ints, height: Ints, width: Ints) -> Boxes:
        """One box for each image, whatever the view, as FFCV's center crop: 4 x (B,) -> 4 x (B,)."""
        side = np.maximum(1, (self.share * np.minimum(height, width)).astype(np.int64))
        return _centered(height, width, side, side)

    def windows(self, views: Ints, samples: Ints, height: Ints, width: Ints, side: int) -> Windows:
        """The center of the whole image once it is resized, both rounded as torchvision does: 4 x (B,) -> 8 x (B,)."""
        shorter, resized = np.minimum(height, width), round(side / self.share)
        rows, columns = ((resized * n / shorter).astype(np.int64) for n in (height, width))
        down, right = (np.rint((n - side) / 2).astype(np.int64) for n in (rows, columns))
        corner = np.zeros_like(samples)
        return Windows(corner, corner, height, width, rows, columns, down, right)


def _draw(key: U64, height: Ints, width: Ints, scale: tuple[float, float], ratios: NDArray[np.float64]) -> Boxes:
    """All attempts at once, whether they fit or not: 3 x (B,) -> 4 x (attempts, B)."""
    attempt = np.arange(_ATTEMPTS)[:, None]
    area = (height * width) * (scale[0] + (scale[1] - scale[0]) * uniform(key, 4 * attempt))
    ratio = ratios[(uniform(key, 4 * attempt + 1) * len(ratios)).astype(np.int64)]
    w = np.floor(np.sqrt(area * ratio) + 0.5).astype(np.int64)
    h = np.floor(np.sqrt(area / ratio) + 0.5).astype(np.int64)
    top = np.floor(uniform(key, 4 * attempt + 2) * (height - h + 1)).astype(np.int64)
    left = np.floor(uniform(key, 4 * attempt + 3) * (width - w + 1)).astype(np.int64)
    return Boxes(top, left, h, w)


def _centered(height: Ints, width: Ints, h: Ints, w: Ints) -> Boxes:
    return Boxes((height - h) // 2, (width - w) // 2, h, w)


@functools.cache
def _ratio_table(low: float, high: float) -> NDArray[np.float64]:
    """Ratios evenly spaced in their logarithm, rounded to 16 bits: exp may differ between machines, these do not."""
    steps = (np.arange(_RATIOS) + 0.5) / _RATIOS
    return np.round(np.exp(np.log(low) + (np.log(high) - np.log(low)) * steps) * 65536) / 65536


class Decoder:
    """Decodes samples of one file to S x S pixels; may be called by many threads at once.

    `native` (`native.cpp`) decodes only where the crop lies, and resizes as Pillow does, to the bit.  `scaled` does so
    too, but decodes crops of twice the size, or more, with fewer pixels: for large images.  `ffcv` decodes all of the
    image with the fast, less exact transform and averages areas, as FFCV does, whatever the interpolation.
    """

    def __init__(
        self,
        beton: Beton,
        crop: RandomCrop | CenterCrop,
        size: int,
        kind: str = "ffcv",
        instead: Callable[[DecodeError], int] | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.beton = beton
        self.instead = instead or _nothing
        self.crop = crop
        self.size = size
        self._kind = kind
        self._interpolation = interpolation
        self._library = native_library() if kind in _NATIVE else ffcv_library()
        jpegs = beton.mode == JPEG
        self._scratch_bytes = int((3 * beton.height * beton.width)[jpegs].max(initial=0))
        self._local = threading.local()

    def decode(self, views: Ints, samples: Ints, out: NDArray[np.uint8]) -> Ints:
        """Fills `out` (B, S, S, 3) with the samples (B,), cropped for their views (B,); returns the samples it shows.

        `instead` names another sample for a damaged one, or -1 for none.  Without it raises DecodeError.
        """
        assert out.shape == (len(samples), self.size, self.size, 3) and out.flags.c_contiguous
        shown = samples.copy()
        start = 0
        while (damaged := self._damaged(views[start:], shown[start:], out[start:])) >= 0:
            start += damaged
            shown[start] = self.instead(DecodeError(self.beton, int(shown[start])))
            start += shown[start] < 0
        return shown

    def _damaged(self, views: Ints, samples: Ints, out: NDArray[np.uint8]) -> int:
        """Decodes up to the first damaged sample; its place, or -1."""
        data = self.beton
        height, width, size = data.height[samples], data.width[samples], data.size[samples]
        wanted: Boxes | Windows
        if self._kind in _NATIVE:
            decode, wanted = self._native, self.crop.windows(views, samples, height, width, self.size)
        else:
            decode, wanted = self._ffcv, self.crop.boxes(views, samples, height, width)
        content, offset = data.storage.fetch(data.offset[samples], size)
        images = np.stack((data.mode[samples], height, width, offset, size, *wanted), axis=1, dtype=np.int64)
        return decode(content.ctypes.data, images, out)

    def _native(self, base: int, images: Ints, out: NDArray[np.uint8]) -> int:
        """All images in one call, without Python's lock; the place of the first damaged one, or -1."""
        assert self._library is not None
        how = self._kind == "scaled", self._interpolation == "bicubic"
        return int(
            self._library.vit_decode_windows(base, len(images), images.ctypes.data, self.size, *how, out.ctypes.data)
        )

    def _ffcv(self, base: int, images: Ints, out: NDArray[np.uint8]) -> int:
        """Image by image: decode all of it into this thread's scratch memory, then resize the crop."""
        assert self._library is not None
        S, target = self.size, out.ctypes.data
        if not hasattr(self._local, "scratch"):
            self._local.scratch = np.empty(self._scratch_bytes, np.uint8)
        scratch = self._local.scratch.ctypes.data
        # Plain Python numbers: ctypes takes them five times faster than numpy's.
        for i, (mode, h, w, offset, size, top, left, crop_h, crop_w) in enumerate(images.tolist()):
            pixels = base + offset
            if mode == JPEG:
                if self._library.imdecode(pixels, size, h, w, scratch, h, w, 0, 0, 1, 1, False, False):
                    return i
                pixels = scratch
            box = (top, top + crop_h, left, left + crop_w)
            self._library.resize(0, pixels, h, w, *box, target + i * 3 * S * S, S, S)
        return -1


def _nothing(error: DecodeError) -> int:
    raise error


def resolve(choice: str, interpolation: str = "bilinear") -> str:
    """`native`, `scaled` or `ffcv`.  Raises ValueError if one of the first two is needed and was not built."""
    if choice == "auto":
        choice = "native" if native_library() or interpolation == "bicubic" else "ffcv"
    if choice in _NATIVE and native_library() is None:
        raise ValueError(
            f"data.decoder: {choice} was not built here (it needs libjpeg-turbo's headers); use ffcv or auto, "
            "and data.interpolation bilinear"
        )
    return choice


def native_library() -> ctypes.CDLL | None:
    """Our C++ decoder, if it was built when the project was installed."""
    spec = importlib.machinery.PathFinder.find_spec("_native", [str(Path(__file__).parent)])
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.vit_decode_windows.argtypes = [pointer, i64, pointer, i64, i64, i64, pointer]
    library.vit_decode_windows.restype = i64
    return library
