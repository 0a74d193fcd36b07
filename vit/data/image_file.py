"""Reads image files of every format that Pillow decodes: bytes -> upright 8-bit RGB pixels.

A defect that costs no pixels, such as EXIF data that cannot be read, is reported with the pixels.  A file whose pixels
are damaged is refused.
"""

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

Pixels = NDArray[np.uint8]  # (height, width, 3)

MAX_MEGAPIXELS = 179  # Pillow's own limit: a small file may decode to any number of pixels

UNREADABLE_EXIF = "EXIF data that cannot be read"

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Without a handler, Python prints Pillow's messages about damaged files on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_pillow_lock = threading.Lock()


class BadImageError(ValueError):
    """The content of a file is not an image, is damaged, or cannot be shown in RGB.  The message is a short reason."""


class TooManyPixelsError(BadImageError):
    """The image is larger than the limit."""


class DecodedImage(NamedTuple):
    """An image in upright RGB, and the kinds of harmless defects in its file."""

    pixels: Pixels  # (height, width, 3) uint8
    defects: tuple[str, ...] = ()


def decode_image(content: bytes, max_megapixels: int = MAX_MEGAPIXELS) -> DecodedImage:
    """Decodes an image file and turns it upright by its EXIF or XMP data; of several frames, the first one.

    Thread-safe.  Raises BadImageError.
    """
    try:
        return _decode(content, max_megapixels)
    except TooManyPixelsError:
        raise
    except BadImageError:
        # Some decoders, as of AVIF, refuse a picture for its EXIF data.  Under another name these are ignored.
        if b"Exif" not in content:
            raise
        with suppress(BadImageError):
            pixels, defects = _decode(content.replace(b"Exif", b"none", 1), max_megapixels)
            return DecodedImage(pixels, (*defects, UNREADABLE_EXIF))
        raise


def _decode(content: bytes, max_megapixels: int) -> DecodedImage:
    with _open(content, max_megapixels) as (image, defects):
        image.load()
        to_eight_bits = _deep_pixels(image)
        orientation = _orientation(image, defects)
        upright = image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image
        if to_eight_bits:
            pixels = to_eight_bits(np.array(upright)).astype(np.uint8)
        else:
            pixels = np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
    return DecodedImage(np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels, tuple(defects))


def is_upright(content: bytes) -> bool:
    """Whether no EXIF or XMP data that can be read turns an image.  Raises BadImageError."""
    with _open(content, None) as (image, defects):
        return _orientation(image, defects) not in _TRANSPOSE


@contextmanager
def _open(content: bytes, max_megapixels: int | None) -> Iterator[tuple[ImageFile.ImageFile, list[str]]]:
    """Opens an image file, and collects its defects in a list.  Raises BadImageError for all of Pillow's errors."""
    defects: list[str] = []
    # Pillow's limit and Python's warnings are settings of the whole process.
    with _pillow_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = (
            max_megapixels and max_megapixels * 500_000
        )  # Pillow warns there, and refuses twice as many
        try:
            with Image.open(BytesIO(content)) as image:
                yield image, defects
        except (BadImageError, MemoryError):
            raise
        except UnidentifiedImageError:
            raise BadImageError("not an image that Pillow can read") from None
        except Image.DecompressionBombError:
            raise TooManyPixelsError(f"it has more than {max_megapixels} megapixels") from None
        except Exception as error:  # Pillow's decoders raise many types
            raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        defects += sorted({kind for warning in caught if (kind := _kind(warning))} - {*defects})


def _orientation(image: ImageFile.ImageFile, defects: list[str]) -> int:
    """The orientation by EXIF or XMP, 1 to 8; 1 if they cannot be read, which is a harmless defect."""
    try:
        Image.Exif().load(image.info.get("exif", b""))  # again, because Pillow hides errors when it opens a JPEG
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow's parsers raise many types
        defects.append(UNREADABLE_EXIF)
        return 1


def _deep_pixels(image: ImageFile.ImageFile) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """How an image's pixels become 8 bits deep; None if they are so already.

    Pillow's `convert` would clip them at 255.  Raises BadImageError if nothing says which value is white.
    """
    if image.mode.startswith("I;16"):
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            return lambda pixels: pixels >> 4
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which Pillow ignores
            return lambda pixels: ~pixels >> 8
        return lambda pixels: pixels >> 8
    if image.mode == "I" and image.format == "PPM":  # the header says what white is; Pillow scales that to 65,535
        return lambda pixels: np.rint(pixels / 257)
    if image.mode in ("I", "F"):
        raise BadImageError(f"pixels of Pillow's mode {image.mode} have no agreed white; save it with 8 or 16 bits")
    return None


def _kind(warning: warnings.WarningMessage) -> str | None:
    """What a warning of Pillow says about the file, without the numbers in it; None if it is about something else."""
    text = str(warning.message)
    # Others, as of large images, are no defects; Pillow advises on palettes with transparency.
    if warning.category is not UserWarning or text.startswith("Palette images"):
        return None
    return re.split(r"[.,:;(]|\d", text)[0].strip()
