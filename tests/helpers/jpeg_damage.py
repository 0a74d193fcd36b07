"""JPEGs of every kind, ways to damage them, and defects that cost no pixels."""

from collections.abc import Callable

import numpy as np

from tests.helpers.image_files import encode_image
from tests.helpers.images import Pixels, encode_jpeg, photograph_array

END = b"\xff\xd9"
HEIGHT, WIDTH = 120, 160
PICTURE: Pixels = photograph_array(HEIGHT, WIDTH, 1)


KINDS: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: encode_jpeg(PICTURE),
    "full-chroma": lambda: encode_jpeg(PICTURE, subsampling=0),
    "optimized": lambda: encode_jpeg(PICTURE, optimize=True),
    "restarts": lambda: encode_jpeg(PICTURE, restart_marker_rows=1),
    "progressive": lambda: encode_jpeg(PICTURE, progressive=True),
    "gray": lambda: encode_jpeg(PICTURE[..., 0]),
    "cmyk": lambda: encode_image(np.dstack([PICTURE, PICTURE[..., 0]]), mode="CMYK"),  # as Adobe's programs write it
}
# What libjpeg, and so Pillow, turns into gray or noise without an error.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros-in-the-middle": lambda j: j[: len(j) // 3] + bytes(len(j) // 3) + j[2 * len(j) // 3 :],
    "zeros-at-the-end": lambda j: j[: 2 * len(j) // 3] + bytes(len(j) // 3) + END,
    "cut-and-ended": lambda j: j[: len(j) // 3] + END,
    "cut": lambda j: j[: len(j) // 2],
    "bytes-missing": lambda j: j[: len(j) // 2] + j[len(j) // 2 + 300 :],
    "half-of-another": lambda j: j[: len(j) // 2] + encode_jpeg(PICTURE[::-1])[-len(j) // 3 :],
}
# Defects that change no pixel.
DEFECTS: dict[str, Callable[[bytes], bytes]] = {
    "no-end": lambda j: j[:-2],
    "padded-with-zeros": lambda j: j[:-2] + bytes(40) + END,
    "padded-with-ones": lambda j: j[:-2] + b"\xff" * 40 + END,
    "some-more-bytes": lambda j: j[:-2] + b"abc" + END,
    "trailing-bytes": lambda j: j + b"trailing" * 40,
    "bytes-before-a-marker": lambda j: j[: j.index(b"\xff\xdb")] + b"abc" + j[j.index(b"\xff\xdb") :],
    "unknown-jfif-version": lambda j: j.replace(b"JFIF\0\x01", b"JFIF\0\x07"),
    "unknown-marker": lambda j: j[:2] + b"\xff\xed\0\x06junk" + j[2:],
}
