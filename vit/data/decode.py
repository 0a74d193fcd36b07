"""Decodes samples: counter-based random crops, decoded and resized in C.

FFCV draws its crops from numba's thread-local generator, which no seed makes reproducible.  These crops are a pure
function of (seed, view, sample), computed only with + - * / and square roots, which IEEE 754 rounds the same way on
every machine.

Shapes: B samples, S side of the output in pixels.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit.config.user_error import UserError
from vit.data.beton import Beton
from vit.data.ffcv_format import JPEG, ffcv_library, ffcv_problem
from vit.data.native import BUILD, NOT_BUILT, check_jpeg_decoder, decoder_in_use, native_library
from vit.random_keys import U64, Stream, keys, uniform

Ints = NDArray[np.int64]

_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop and in FFCV
_NATIVE = ("native", "scaled")  # backends implemented in `native.cpp`
_OUT_OF_MEMORY = -2  # result of the C++ decoder
_RATIOS = 4096  # number of aspect ratios to choose from, evenly spaced on a logarithmic scale


class DamagedDataError(RuntimeError):
    """A data set's bytes are damaged.  The message names the file and the position."""


class DecodeError(DamagedDataError):
    """A sample cannot be decoded."""

    def __init__(self, beton: Beton, sample: int) -> None:
        position = f"{beton.size[sample]} bytes at offset {beton.offset[sample]}"
        super().__init__(f"{beton.path}: sample {sample} ({position}) is not a complete, valid JPEG")
        self.sample = sample


class Boxes(NamedTuple):
    """Crop boxes, in pixels of each image: 4 x (B,)."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints


class Windows(NamedTuple):
    """Resized crops: a box of each image is resized, and S x S pixels of the result are the output: 8 x (B,)."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    resized_height: Ints  # of the whole box
    resized_width: Ints
    out_top: Ints  # top left corner of the S x S pixels in the resized box
    out_left: Ints


@dataclass(frozen=True)
class RandomCrop:
    """torchvision's RandomResizedCrop as a function of (seed, view, sample): a box of random area and aspect ratio."""

    seed: int
    scale: tuple[float, float]  # area of the box / area of the image, [min, max]
    ratio: tuple[float, float]  # width / height of the box, [min, max]

    def boxes(self, views: Ints, samples: Ints, height: Ints, width: Ints) -> Boxes:
        """The first of ten draws that fits, else the largest centered box of an allowed ratio: 4 x (B,) -> 4 x (B,)."""
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
        """The boxes, each resized to `side` x `side` pixels: 4 x (B,) -> 8 x (B,)."""
        size, corner = np.full_like(samples, side), np.zeros_like(samples)
        return Windows(*self.boxes(views, samples, height, width), size, size, corner, corner)


@dataclass(frozen=True)
class CenterCrop:
    """A centered square: torchvision's `Resize(256)` and `CenterCrop(224)` if `share` is 224 / 256."""

    share: float  # side of the square / shorter side of the image

    def boxes(self, views: Ints, samples: Ints, height: Ints, width: Ints) -> Boxes:
        """The same box for every view, as in FFCV's center crop: 4 x (B,) -> 4 x (B,)."""
        side = np.maximum(1, (self.share * np.minimum(height, width)).astype(np.int64))
        return _centered(height, width, side, side)

    def windows(self, views: Ints, samples: Ints, height: Ints, width: Ints, side: int) -> Windows:
        """The center of the whole image after resizing it, both rounded as in torchvision: 4 x (B,) -> 8 x (B,)."""
        shorter, resized = np.minimum(height, width), round(side / self.share)
        resized_height, resized_width = ((resized * n / shorter).astype(np.int64) for n in (height, width))
        out_top, out_left = (np.rint((n - side) / 2).astype(np.int64) for n in (resized_height, resized_width))
        corner = np.zeros_like(samples)
        return Windows(corner, corner, height, width, resized_height, resized_width, out_top, out_left)


def _draw(key: U64, height: Ints, width: Ints, scale: tuple[float, float], ratios: NDArray[np.float64]) -> Boxes:
    """Draws all attempts, whether or not the boxes fit into their images: 3 x (B,) -> 4 x (attempts, B)."""
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
    """Aspect ratios, evenly spaced on a logarithmic scale: (_RATIOS,).

    Rounded to 16 fractional bits, because exp and log may differ in their last bits between machines.
    """
    steps = (np.arange(_RATIOS) + 0.5) / _RATIOS
    return np.round(np.exp(np.log(low) + (np.log(high) - np.log(low)) * steps) * 65536) / 65536


class Decoder:
    """Decodes samples of one file to S x S pixels; S may differ from call to call.  Thread-safe.

    Backends: `native` (`native.cpp`) decodes only the crop and resizes it like Pillow, bit for bit.  `scaled` is the
    same, but decodes crops at least twice as large as the output at a lower resolution; it is faster for large images.
    `ffcv` decodes the whole image with libjpeg's fast, less exact DCT and averages areas, as FFCV does; it ignores
    `interpolation`.

    `on_damage` is called for a sample that cannot be decoded.  It returns the sample to decode instead, returns -1 to
    skip it, or raises the error, which is the default.
    """

    def __init__(
        self,
        beton: Beton,
        crop: RandomCrop | CenterCrop,
        backend: str = "ffcv",
        on_damage: Callable[[DecodeError], int] | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.beton = beton
        self.on_damage = on_damage or _raise
        self.crop = crop
        self._backend = backend
        self._interpolation = interpolation
        self._library = native_library() if backend in _NATIVE else ffcv_library()
        jpegs = beton.mode == JPEG
        self._scratch_bytes = int((3 * beton.height * beton.width)[jpegs].max(initial=0))
        self._local = threading.local()

    def decode(self, views: Ints, samples: Ints, out: NDArray[np.uint8]) -> Ints:
        """Decodes the samples (B,), cropped for their views (B,), into `out` (B, S, S, 3).

        The boxes of random crops do not depend on S, to which they are resized.  Returns the sample decoded into each
        place, which differs from `samples` where `on_damage` was called: (B,).
        """
        S = out.shape[1]
        assert out.shape == (len(samples), S, S, 3) and out.flags.c_contiguous
        decoded = samples.copy()
        start = 0
        while (damaged := self._decode_until_damage(views[start:], decoded[start:], out[start:])) >= 0:
            start += damaged
            decoded[start] = self.on_damage(DecodeError(self.beton, int(decoded[start])))
            start += decoded[start] < 0
        return decoded

    def _decode_until_damage(self, views: Ints, samples: Ints, out: NDArray[np.uint8]) -> int:
        """Decodes up to the first damaged sample; returns its index in the batch, or -1."""
        data = self.beton
        height, width, size = data.height[samples], data.width[samples], data.size[samples]
        crops: Boxes | Windows
        if self._backend in _NATIVE:
            decode, crops = self._native, self.crop.windows(views, samples, height, width, out.shape[1])
        else:
            decode, crops = self._ffcv, self.crop.boxes(views, samples, height, width)
        content, offset = data.storage.fetch(data.offset[samples], size)
        images = np.stack((data.mode[samples], height, width, offset, size, *crops), axis=1, dtype=np.int64)
        return decode(content.ctypes.data, images, out)

    def _native(self, base: int, images: Ints, out: NDArray[np.uint8]) -> int:
        """Decodes all images in one call, without Python's global lock; index of the first damaged one, or -1."""
        assert self._library is not None
        scaled, cubic = self._backend == "scaled", self._interpolation == "bicubic"
        count, S, images_pointer, out_pointer = len(images), out.shape[1], images.ctypes.data, out.ctypes.data
        failed = self._library.vit_decode_windows(base, count, images_pointer, S, scaled, cubic, out_pointer)
        if failed == _OUT_OF_MEMORY:
            raise MemoryError(f"not enough memory to decode images of {self.beton.path}")
        return int(failed)

    def _ffcv(self, base: int, images: Ints, out: NDArray[np.uint8]) -> int:
        """Decodes each image into this thread's scratch memory, then resizes its crop; returns as `_native`."""
        assert self._library is not None
        S, target = out.shape[1], out.ctypes.data
        if not hasattr(self._local, "scratch"):
            self._local.scratch = np.empty(self._scratch_bytes, np.uint8)
        scratch = self._local.scratch.ctypes.data
        # Python integers: ctypes converts them five times faster than numpy's.
        for i, (mode, h, w, offset, size, top, left, crop_h, crop_w) in enumerate(images.tolist()):
            pixels = base + offset
            if mode == JPEG:
                if self._library.imdecode(pixels, size, h, w, scratch, h, w, 0, 0, 1, 1, False, False):
                    return i
                pixels = scratch
            box = (top, top + crop_h, left, left + crop_w)
            self._library.resize(0, pixels, h, w, *box, target + i * 3 * S * S, S, S)
        return -1


def _raise(error: DecodeError) -> int:
    raise error


def resolve_decoder(choice: str, interpolation: str = "bilinear") -> str:
    """The backend for a value of `data.decoder`: `native`, `scaled` or `ffcv`.

    Raises UserError if it is the C++ decoder or FFCV's, and that one cannot be used.
    """
    if choice == "ffcv":
        ffcv_library()
        return choice
    if native_library() is None:
        if choice == "auto" and interpolation == "bilinear":
            check_jpeg_decoder()
            return "ffcv"
        needed = f"data.decoder {choice}" if choice in _NATIVE else f"data.interpolation {interpolation}"
        other = "" if ffcv_problem() else ", or use data.decoder ffcv with data.interpolation bilinear"
        raise UserError(f"{needed} needs the C++ decoder; {NOT_BUILT}; {BUILD}{other}")
    return "native" if choice == "auto" else choice


def decoder_note(choice: str) -> str:
    """A further line for the user if `auto` had to select FFCV's decoder; else empty."""
    if choice != "auto" or native_library() is not None:
        return ""
    return f"\ndata: {decoder_in_use()}"
