"""JPEGs: which can be stored as they lie in files, their pixels as the trainer will see them, and those we make."""

from io import BytesIO

import numpy as np
from PIL import Image

from data_prep.sources.source import Pixels
from vit.data.ffcv_format import ffcv_library

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_SAMPLINGS = {(1, 1), (2, 1), (1, 2), (2, 2)}  # of the brightness over that of the colors; all that is common
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a frame's header; the three mean other things


def baseline_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels of a JPEG that every decoder reads alike, else None.

    That is: baseline (ITU T.81, SOF0), three components of YCbCr (JFIF, or Adobe's transform 1, or neither and not
    named R, G, B: libjpeg's rules), in one scan, in a common subsampling, and not to be turned by EXIF or XMP.
    """
    size: tuple[int, int] | None = None
    jfif, has_notes = False, False
    adobe: int | None = None  # its transform
    components = b""
    position = 2
    if content[:2] != b"\xff\xd8":
        return None
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == 0xC0 and len(segment) == 15 and segment[0] == 8 and segment[5] == 3 and size is None:
            size = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            components = segment[6:]
        elif marker in _FRAMES:
            return None
        elif marker == 0xE0 and segment[:5] == b"JFIF\0":
            jfif = True
        elif marker == 0xE1:
            has_notes = True
        elif marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            adobe = segment[11]
        elif marker == 0xDA:  # the image's data begins
            if not size or 0 in size or segment[:1] != b"\x03":
                return None
            ycbcr = jfif or (adobe == 1 if adobe is not None else components[::3] != b"RGB")
            y, cb, cr = ((factors >> 4, factors & 15) for factors in components[1::3])
            if not ycbcr or y not in _SAMPLINGS or not cb == cr == (1, 1):
                return None
            return size if not has_notes or _upright(content) else None
    return None


def _upright(content: bytes) -> bool:
    with Image.open(BytesIO(content)) as opened:
        return bool(opened.getexif().get(_ORIENTATION, 1) == 1)


def pixels(content: bytes, height: int, width: int) -> Pixels | None:
    """A JPEG's pixels (height, width, 3) by FFCV's decoder, or None if it has a word to say against the file.

    libjpeg makes gray of what is missing and goes on; FFCV ignores its warnings, a careful trainer does not.
    """
    source = np.frombuffer(content, np.uint8)
    out = np.empty((height, width, 3), np.uint8)
    failed = ffcv_library().imdecode(
        source.ctypes.data, source.size, height, width, out.ctypes.data, height, width, 0, 0, 1, 1, False, False
    )
    return None if failed else out


def encoded(pixels: Pixels, quality: int) -> bytes:
    """The JPEG that FFCV's writer makes of pixels (height, width, 3): OpenCV's, its colors at half the resolution."""
    import cv2

    _, content = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return content.tobytes()
