"""Which libjpeg the C++ decoder uses, and whether it gives the pixels of libjpeg-turbo.

It may be another one than when the decoder was built: another node, another container, LD_LIBRARY_PATH.
"""

import ctypes
import re
import zlib
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit.data.ffcv_format import JPEG

_MESSAGE_BYTES = 200  # libjpeg's JMSG_LENGTH_MAX
_PATH_BYTES = 4096
_NAME = re.compile(rb"(libjpeg-turbo|mozjpeg) version (\d[\w.]*)")
_TURBO = "libjpeg-turbo"

# A JPEG of 24 x 40 pixels whose chroma has half the resolution; windows of it that skip rows and columns, and that are
# decoded whole, at half and at a quarter of their size; and the CRC-32 of their pixels.
_HEIGHT, _WIDTH, _SIDE = 24, 40, 8
_WINDOWS = ((0, 0, 24, 40), (7, 17, 8, 8), (3, 5, 17, 19), (0, 2, 24, 36))  # top, left, height and width of each
_SAMPLE = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAYACgD"
    "ASIAAhEBAxEB/8QAGgAAAgMBAQAAAAAAAAAAAAAAAAUCAwQGAf/EACgQAAEDAwQABQUAAAAAAAAAAAEAAhEDBCEFEjFBExQiYfAyM1Gxwf/EABcB"
    "AAMBAAAAAAAAAAAAAAAAAAMEBQb/xAAnEQABAgQEBgMAAAAAAAAAAAABAgMABDFBERJhoRMhIjKBkUJDcv/aAAwDAQACEQMRAD8AfWxa0B7tpEdL"
    "NqNuy6ZNPBH590mo39SltbVnYeZEK06qJApHBw6MpZMvlSeGDw7j5E6aU3gs6hcsnorCy8tfDeWw4kclqzWttVtage48dD57rpqLaFzBqRuPIJgq"
    "0adu+4PREGcJszWUJS5bt0/W3owhIPFxfXC+2vi5oDTBaO8fpCjqFn5cTbt5OYyhCcblnFFTySVXKaePG8aIqaHbEdSoGpLNkDOeeEhcKllUzLp+"
    "f1CEeTfW5KqmVnFaeQOnK1Lm0RHXlOLyKpDTTq7nkVC6AeoXTW2osrM2OAbPczCEIc62lBay/Z3a44eqmmEUW5dsNlQHMR5dOptBH1bukIQp78y7"
    "KOFllWCRQb3jNzLywusf/9k="
)
_PIXELS = 0x2EB54F9F


@dataclass(frozen=True)
class JpegLibrary:
    """The libjpeg in use."""

    name: str  # libjpeg-turbo, mozjpeg, or libjpeg for all others
    version: str
    path: str
    built_with: str  # version of the libjpeg-turbo whose headers were used

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip() + f" ({self.path})"


def jpeg_library(decoder: ctypes.CDLL) -> JpegLibrary:
    """The libjpeg that the C++ decoder uses.  Raises ValueError that says why it must not be used, and names it."""
    decoder.vit_built_with.restype = ctypes.c_char_p
    path, message = ctypes.create_string_buffer(_PATH_BYTES), ctypes.create_string_buffer(_MESSAGE_BYTES)
    failed = decoder.vit_libjpeg(path, ctypes.c_int64(_PATH_BYTES), message)
    file = Path(path.value.decode(errors="surrogateescape"))
    named = _NAME.search(file.read_bytes())
    name, version = (part.decode() for part in named.groups()) if named else ("libjpeg", "")
    library = JpegLibrary(name, version, str(file), decoder.vit_built_with().decode())
    if name != _TURBO:
        raise ValueError(f"{library} is not {_TURBO}")
    if failed:
        why = message.value.decode("ascii", "replace")
        raise ValueError(f"{library} does not fit {_TURBO} {library.built_with}, with which it was built: {why}")
    if _pixels(decoder) != _PIXELS:
        raise ValueError(f"{library} does not give the pixels of {_TURBO} 2.1.5 to 3.2.0, which were tested")
    return library


def _pixels(decoder: ctypes.CDLL) -> int:
    """The CRC-32 of the sample's pixels: of the whole image, and of its windows, exact and scaled."""
    content = np.frombuffer(_SAMPLE, np.uint8)
    out, message = np.zeros((_HEIGHT, _WIDTH, 3), np.uint8), ctypes.create_string_buffer(_MESSAGE_BYTES)
    decoder.vit_decode_jpeg(_SAMPLE, len(_SAMPLE), _HEIGHT, _WIDTH, out.ctypes.data, message)
    total = zlib.crc32(out.tobytes())
    for box in _WINDOWS:
        image = np.array([JPEG, _HEIGHT, _WIDTH, 0, len(_SAMPLE), *box, _SIDE, _SIDE, 0, 0], np.int64)
        for scaled in (0, 1):
            window = np.zeros((_SIDE, _SIDE, 3), np.uint8)
            arguments = image.ctypes.data, _SIDE, scaled, 0, window.ctypes.data
            decoder.vit_decode_windows(content.ctypes.data, 1, *arguments)
            total = zlib.crc32(window.tobytes(), total)
    return total
