"""JPEGs: which ones can be copied unchanged, and how images are encoded."""

from data_prep.opencv import opencv
from data_prep.sources.source import Pixels
from vit.data.image_file import BadImageError, read_orientation

_LUMA_SAMPLING = {(1, 1), (2, 1), (1, 2), (2, 2)}  # horizontal, vertical factors relative to chroma: the common ones
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of frame headers; these three have other meanings


def baseline_size(content: bytes, defects: list[str] | None = None) -> tuple[int, int] | None:
    """(height, width) in pixels of a JPEG that all decoders decode alike, else None.

    Harmless defects of its metadata are added to `defects`.

    Such a JPEG is baseline (ITU T.81, SOF0), has three YCbCr components (by libjpeg's rules: JFIF, or Adobe's transform
    1, or neither and components not named R, G, B) in one scan, with common subsampling, and is not rotated by EXIF or
    XMP metadata.
    """
    size: tuple[int, int] | None = None
    has_jfif, has_metadata = False, False
    adobe_transform: int | None = None
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
            has_jfif = True
        elif marker == 0xE1:
            has_metadata = True
        elif marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            adobe_transform = segment[11]
        elif marker == 0xDA:  # start of scan: image data follows
            if not size or 0 in size or segment[:1] != b"\x03":
                return None
            is_ycbcr = has_jfif or (adobe_transform == 1 if adobe_transform is not None else components[::3] != b"RGB")
            y, cb, cr = ((factors >> 4, factors & 15) for factors in components[1::3])
            if not is_ycbcr or y not in _LUMA_SAMPLING or not cb == cr == (1, 1):
                return None
            return size if not has_metadata or _is_upright(content, defects) else None
    return None


def _is_upright(content: bytes, defects: list[str] | None) -> bool:
    try:
        is_upright, found = read_orientation(content)
    except BadImageError:
        return False
    if defects is not None:
        defects += found
    return is_upright


def encode(pixels: Pixels, quality: int) -> bytes:
    """Encodes pixels (height, width, 3) as FFCV's writer does: with OpenCV, chroma at half the resolution."""
    cv2 = opencv()
    _, content = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(content.tobytes())
