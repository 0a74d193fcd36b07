"""The C++ decoders: their library, and whole JPEGs with what is wrong with them."""

import ctypes
import functools
import importlib.machinery
import re
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit.config.own_files import is_checkout
from vit.config.user_error import UserError
from vit.data.ffcv_format import ffcv_library, ffcv_problem
from vit.data.jpeg_library import JpegLibrary, jpeg_library

_MESSAGE_BYTES = 200  # libjpeg's JMSG_LENGTH_MAX
AGAIN = "run make setup again" if is_checkout() else "install vit-slurm again"
NOT_BUILT = (
    "the C++ decoder was not built, because libjpeg-turbo's headers (not those of IJG's libjpeg or of mozjpeg) or a "
    "C++ compiler were missing"
)
BUILD = f"install libjpeg-turbo's headers (libjpeg-dev) and a C++ compiler, and {AGAIN}"


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The library of `native.cpp` and `whole_jpeg.cpp`, or None if it was not built when the project was installed.

    Raises UserError if it was built but cannot be used here.  Nothing takes its place then: other ranks may have it,
    and the pixels of another decoder differ.
    """
    library = _load()
    return library[0] if library else None


def native_jpeg_library() -> JpegLibrary | None:
    """The libjpeg that the library uses, or None if it was not built.  Raises UserError as `native_library`."""
    library = _load()
    return library[1] if library else None


@functools.cache
def _load() -> tuple[ctypes.CDLL, JpegLibrary] | None:
    spec = importlib.machinery.PathFinder.find_spec("_native", [str(Path(__file__).parent)])
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        library.vit_decode_windows.argtypes = [pointer, i64, pointer, i64, i64, i64, pointer]
        library.vit_decode_windows.restype = i64
        library.vit_decode_jpeg.argtypes = [ctypes.c_char_p, i64, i64, i64, pointer, ctypes.c_char_p]
        library.vit_decode_jpeg.restype = i64
        return library, jpeg_library(library)
    except (OSError, AttributeError, ValueError) as error:  # a library that it needs is missing, or is another one
        raise UserError(
            f"the C++ decoder (vit.data._native) cannot be loaded: {error}; make libjpeg-turbo available here (its "
            f"folder in LD_LIBRARY_PATH, a module, a container), or build the decoder on this machine: {AGAIN}"
        ) from None


def check_jpeg_decoder() -> None:
    """Raises UserError unless JPEGs can be decoded, with the C++ decoder or with FFCV's."""
    if native_library() is None and (problem := ffcv_problem()):
        raise UserError(f"JPEGs cannot be decoded: {NOT_BUILT}, and {problem}; {BUILD}")


def decoder_in_use() -> str:
    """One line: by what `data.decoder auto` decodes images here, or why it cannot."""
    try:
        if library := native_jpeg_library():
            return f"images are decoded by the C++ decoder, with {library}"
        check_jpeg_decoder()
    except UserError as error:
        return str(error)
    return f"images are decoded by FFCV's decoder, which is slower and less exact: {NOT_BUILT}; {BUILD}"


class JpegState(IntEnum):
    """What is wrong with a JPEG, in the numbers of `whole_jpeg.cpp`."""

    CLEAN = 0
    HARMLESS = 1  # defects that change no pixel
    LOST = 2  # pixels are lost, which libjpeg fills with gray
    UNREADABLE = 3  # damaged, or of a kind that this decoder does not support


class DecodedJpeg(NamedTuple):
    """A decoded JPEG."""

    state: JpegState
    pixels: NDArray[np.uint8]  # (height, width, 3), as Pillow decodes them; empty without `to_rgb`
    message: str  # what is wrong, without numbers


def decode_jpeg(content: bytes, height: int, width: int, to_rgb: bool = True) -> DecodedJpeg:
    """Decodes a JPEG whose header says `height` x `width`; without `to_rgb`, which CMYK needs, only checks it.

    If the C++ decoder was not built, FFCV's does it, whose pixels differ by a few levels: every defect then counts as
    LOST, and a JPEG without `to_rgb` is UNREADABLE.  Thread-safe.  Raises UserError if there is neither.
    """
    library = native_library()
    out = np.empty((height, width, 3) if to_rgb else 0, np.uint8)
    address = out.ctypes.data if to_rgb else None
    if library is None:
        if not to_rgb:
            return DecodedJpeg(JpegState.UNREADABLE, out, "not checked")
        check_jpeg_decoder()
        source = np.frombuffer(content, np.uint8)
        failed = ffcv_library().imdecode(
            source.ctypes.data, source.size, height, width, address, height, width, 0, 0, 1, 1, False, False
        )
        why = "Corrupt JPEG data, or harmless defects: without libjpeg-turbo's headers, make setup cannot tell"
        return DecodedJpeg(JpegState.LOST, out, why) if failed else DecodedJpeg(JpegState.CLEAN, out, "")
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    state = JpegState(library.vit_decode_jpeg(content, len(content), height, width, address, message))
    return DecodedJpeg(state, out, re.sub(r" \d\S*", "", message.value.decode("ascii", "replace")))
