"""Reads a struct array from a MATLAB file, version 5 to 7: only the part of the format that ImageNet's devkit needs.

Format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf.  (scipy would be a large dependency for it.)
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

# Data types of elements.
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_MATRIX, _COMPRESSED = 14, 15
# Array types of a matrix; 6 to 15 are numeric arrays.
_STRUCT, _CHAR = 2, 4


def read_struct_array(content: bytes, name: str) -> dict[str, list[Any]]:
    """The struct array `name` of a MAT file: the values of each field, one per element, in MATLAB's order.

    Values are str, float64 arrays of shape (any length,), or None for other types.  Raises ValueError if the file is
    damaged or has no such array.
    """
    if len(content) < 128 or content[126:128] != b"IM":
        raise ValueError("not a little-endian MAT file of version 5 to 7")
    try:
        for element in _read_elements(content[128:]):
            kind, payload = element
            if kind == _COMPRESSED:
                kind, payload = next(_read_elements(zlib.decompress(payload)))
            if kind == _MATRIX:
                matrix_name, value = _parse_matrix(payload)
                if matrix_name == name and isinstance(value, dict):
                    return value
    except (struct.error, zlib.error, IndexError, KeyError, StopIteration, UnicodeDecodeError) as error:
        raise ValueError(f"a damaged MAT file ({type(error).__name__})") from error
    raise ValueError(f"no struct array {name} in the MAT file")


def _read_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element; a small element shares 8 bytes with its tag."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from("<II", data, position)
        start = position + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        if start + size > len(data):
            raise IndexError("an element extends past the end of the file")
        yield kind, data[start : start + size]
        end = start + size
        position = end if kind == _COMPRESSED else -(-end // 8) * 8


def _parse_matrix(payload: bytes) -> tuple[str, Any]:
    """Name and value of a matrix."""
    parts = list(_read_elements(payload))
    if not parts:  # MATLAB's [] in a struct
        return "", None
    array_type = struct.unpack_from("<I", parts[0][1])[0] & 0xFF
    name = parts[2][1].decode("ascii")
    if array_type == _STRUCT:
        width = struct.unpack("<i", parts[3][1])[0]
        names = parts[4][1]
        fields = [names[i : i + width].partition(b"\0")[0].decode("ascii") for i in range(0, len(names), width)]
        values = [_parse_matrix(content)[1] for _, content in parts[5:]]
        return name, {field: values[i :: len(fields)] for i, field in enumerate(fields)}
    kind, content = parts[3]
    if array_type == _CHAR:
        return name, content.decode(_TEXTS[kind])
    if 6 <= array_type <= 15:
        return name, np.frombuffer(content, _NUMBERS[kind]).astype(np.float64)
    return name, None
