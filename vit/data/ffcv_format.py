"""FFCV's file format and C library, without FFCV's Python package.  Imports no torch: `data_prep` uses this module too.

A `.beton` file (https://github.com/libffcv/ffcv, `ffcv/types.py`) consists of, in this order and little-endian:

    HEADER        1 record
    FIELD         1 record per field of a sample
    SAMPLE        1 record per sample
    pages         encoded images, padded to whole pages of header["page_size"] bytes; no image crosses a page boundary
    ALLOCATION    1 record per sample, from byte header["table"] on

`import ffcv` compiles numba code for 4 to 5 seconds, in every process and at every restart, so these records are read
with numpy instead.
"""

import ctypes
import importlib.machinery
import importlib.util
from functools import cache

import numpy as np

from vit.config.user_error import UserError
from vit.run.dependencies import FFCV_ADVICE

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD = np.dtype([("type", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("offset", "<u8")])  # pixels; bytes in the file
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("offset", "<u8"), ("size", "<u8")])  # where an encoded image lies, in bytes

TYPES = {0: "float", 1: "int", 2: "image", 3: "bytes", 4: "array", 5: "json", 6: "tensor"}  # FFCV's field types
FIELDS = [("image", "image"), ("label", "int")]  # name and type of each field; files with other names can be read
JPEG, RAW = 0, 1  # values of IMAGE's mode: a JPEG file, or height x width x 3 bytes


def field_names(fields: np.ndarray) -> list[tuple[str, str]]:
    """Name and type of each field: (fields,) of FIELD -> a list like FIELDS."""
    return [
        (bytes(f["name"]).split(b"\0")[0].decode("ascii", "replace"), TYPES.get(int(f["type"]), f"type {f['type']}"))
        for f in fields
    ]


def are_image_and_label(fields: list[tuple[str, str]]) -> bool:
    """Whether a sample is an image and an integer, whatever their names: whether it is a record of SAMPLE."""
    return [kind for _, kind in fields] == [kind for _, kind in FIELDS]


@cache
def ffcv_library() -> ctypes.CDLL:
    """FFCV's C library, loaded without importing FFCV.  Raises UserError if it is not installed or cannot be loaded."""
    package = importlib.util.find_spec("ffcv")  # locates the package without running it
    folders = package.submodule_search_locations if package else None
    spec = importlib.machinery.PathFinder.find_spec("_libffcv", list(folders or []))
    if spec is None or spec.origin is None:
        raise UserError(f"FFCV's C library is not installed; {FFCV_ADVICE}")
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:  # OpenCV or libjpeg-turbo, with which it was built, is not here
        raise UserError(f"FFCV's C library cannot be loaded: {error}; {FFCV_ADVICE}") from None
    library.resize.argtypes = 11 * [ctypes.c_int64]
    library.resize.restype = None
    pointer, u32, flag = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool
    library.imdecode.argtypes = [pointer, ctypes.c_uint64, u32, u32, pointer, *6 * [u32], flag, flag]
    library.imdecode.restype = ctypes.c_int
    return library


def ffcv_problem() -> str:
    """Why FFCV's C library cannot be used; empty if it can."""
    try:
        ffcv_library()
    except UserError as error:
        return str(error).split("; ")[0]
    return ""
