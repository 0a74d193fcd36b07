"""Reads image files of every format that Pillow decodes: bytes -> upright 8-bit RGB pixels.

A defect that costs no pixels, such as EXIF data that cannot be read, is reported with the pixels.  A file whose pixels
are damaged is refused.
"""

import ctypes
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, _imaging

from vit.data.native import DecodedJpeg, JpegState, decode_jpeg, native_library

Pixels = NDArray[np.uint8]  # (height, width, 3)

MAX_MEGAPIXELS = 179  # Pillow's own limit: a small file may decode to any number of pixels

BYTES_AFTER_END = "bytes after the end-of-image marker"
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
        pixels = _jpeg_pixels(content, image, defects) if image.format in ("JPEG", "MPO") else None
        if pixels is None:
            pixels = _eight_bits(image)
        orientation = _orientation(image, defects)
        if orientation in _TRANSPOSE:
            pixels = np.array(Image.fromarray(pixels).transpose(_TRANSPOSE[orientation]))
    return DecodedImage(pixels, tuple(defects))


def _jpeg_pixels(content: bytes, image: ImageFile.ImageFile, defects: list[str]) -> Pixels | None:
    """The pixels of a JPEG, as Pillow's; None if Pillow must decode them.  Raises BadImageError if pixels are lost."""
    is_plain = image.mode in ("L", "RGB")
    decoded = decode_jpeg(content, image.height, image.width, to_rgb=is_plain)
    if decoded.state is JpegState.LOST:
        raise BadImageError(f"pixels are lost ({decoded.message})")
    defects += jpeg_defects(content, decoded)
    if decoded.state is JpegState.HARMLESS and not is_plain:
        with Image.open(BytesIO(content + b"\xff\xd9")) as ended:  # Pillow insists on the end-of-image marker
            return _eight_bits(ended)
    is_exact = is_plain and decoded.state is not JpegState.UNREADABLE and native_library() is not None
    return decoded.pixels if is_exact else None


def jpeg_defects(content: bytes, decoded: DecodedJpeg) -> tuple[str, ...]:
    """The harmless defects of a JPEG file.  libjpeg does not report bytes that follow the image."""
    if decoded.state is JpegState.HARMLESS:
        return (decoded.message,)
    return () if decoded.state is not JpegState.CLEAN or content.endswith(b"\xff\xd9") else (BYTES_AFTER_END,)


def read_orientation(content: bytes) -> tuple[bool, tuple[str, ...]]:
    """Whether an image file is upright, as far as that can be read, and its metadata's harmless defects.

    Thread-safe.  Raises BadImageError.
    """
    with _open(content, None) as (image, defects):
        is_upright = _orientation(image, defects) not in _TRANSPOSE
    return is_upright, tuple(defects)


@contextmanager
def _open(content: bytes, max_megapixels: int | None) -> Iterator[tuple[ImageFile.ImageFile, list[str]]]:
    """Opens an image file, and collects its defects in a list.  Raises BadImageError for all of Pillow's errors."""
    defects: list[str] = []
    # Pillow's limit and Python's warnings are settings of the whole process.
    with _pillow_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limit = Image.MAX_IMAGE_PIXELS
        # Pillow warns of more pixels, and refuses twice as many.
        Image.MAX_IMAGE_PIXELS = max_megapixels and max_megapixels * 500_000
        try:
            with Image.open(BytesIO(content)) as image:
                yield image, defects
        except (BadImageError, MemoryError):
            raise
        except UnidentifiedImageError:
            raise BadImageError(_unidentified(content)) from None
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


def _eight_bits(image: ImageFile.ImageFile) -> Pixels:
    """The pixels of an image: (height, width, 3) uint8.  Raises BadImageError if nothing says which value is white."""
    image.load()
    # Pillow's `convert` would clip deep pixels at 255.
    if image.mode.startswith("I;16"):
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        deep = np.array(image)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which Pillow ignores
            deep = ~deep
        gray = deep >> (4 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 8)
    elif image.mode == "I" and image.format == "PPM":  # the header says what white is; Pillow scales that to 65,535
        gray = np.rint(np.array(image) / 257)
    elif image.mode in ("I", "F"):
        raise BadImageError(f"pixels of Pillow's mode {image.mode} have no agreed white; save it with 8 or 16 bits")
    else:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)


def _unidentified(content: bytes) -> str:
    """Why Pillow does not know an image: names the formats of phones and cameras, which it lacks."""
    if content[4:8] == b"ftyp" and content[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return "a HEIC image, which Pillow cannot read; convert it to JPEG or PNG"
    if content.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "a JPEG XL image, which Pillow cannot read; convert it to JPEG or PNG"
    return "not an image that Pillow can read"


def _kind(warning: warnings.WarningMessage) -> str | None:
    """What a warning of Pillow says about the file, without the numbers in it; None if it is about something else."""
    text = str(warning.message)
    # Others, as of large images, are no defects; Pillow advises on palettes with transparency.
    if warning.category is not UserWarning or text.startswith("Palette images"):
        return None
    return re.split(r"[.,:;(]|\d", text)[0].strip()


def _silence_libtiff() -> None:
    """libtiff itself prints on stderr what Pillow also raises."""
    pillow = ctypes.CDLL(_imaging.__file__)  # finds the functions of the libraries that it is linked with, too
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        with suppress(AttributeError):  # a build of Pillow without libtiff
            set_handler = getattr(pillow, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


_silence_libtiff()
