"""The reader of image files: EXIF data that cannot be read, deep pixels, sizes and Pillow's messages."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, save_bytes, smooth
from tests.helpers.odd_images import ARITHMETIC
from tests.helpers.write_command import stored_images
from vit.data.image_file import UNREADABLE_EXIF, BadImageError, TooManyPixelsError, decode_image

PICTURE = smooth(20, 30)
TURNED = np.rot90(PICTURE, -1)  # by orientation 6


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data: (tag, type, count, value or its offset) of each entry, the orientation, and -72 / 0."""
    entries = (*entries, (0x0112, 3, 1, struct.pack("<HH", 6, 0)))
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + struct.pack("<ii", -72, 0)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the picture with more chunks after its header."""
    plain = encode_image(PICTURE, "PNG")
    extra = [
        struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text)) for kind, text in chunks
    ]
    return plain[:33] + b"".join(extra) + plain[33:]


def avif(metadata: bytes) -> bytes:
    """An AVIF of the picture whose EXIF data are replaced by other bytes."""
    plain = b"Exif\0\0II*\0" + b"\x08\0\0\0" + bytes(40)
    return encode_image(PICTURE, "AVIF", quality=95, exif=plain).replace(plain[6:], metadata.ljust(48, b"\x11")[:48])


ASCII_RESOLUTION = exif((0x011A, 2, 3, b"72\0\0"))
ZERO_RATIONAL = exif((0x011A, 10, 1, struct.pack("<I", 8 + 2 + 2 * 12 + 4)))
XMP = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6">\xff\xfe caf\xe9</x:xmpmeta>'

# Files with defects in their metadata: how each looks, and whether its orientation can be read.
DEFECTS: dict[str, tuple[Callable[[], bytes], bool]] = {
    "jpeg-ascii-resolution": (lambda: encode_image(PICTURE, exif=ASCII_RESOLUTION), True),
    "jpeg-zero-rational": (lambda: encode_image(PICTURE, exif=ZERO_RATIONAL), True),
    "jpeg-garbage": (lambda: encode_image(PICTURE, exif=b"Exif\0\0garbage"), False),
    "jpeg-xmp": (lambda: encode_image(PICTURE, xmp=XMP), True),
    "png-ascii-resolution": (lambda: png((b"eXIf", ASCII_RESOLUTION[6:])), True),
    "png-zero-rational": (lambda: png((b"eXIf", ZERO_RATIONAL[6:])), True),
    "png-garbage": (lambda: png((b"eXIf", b"garbage")), False),
    "png-text": (lambda: png((b"tEXt", b"Raw profile type exif\0\nexif\n 4\nnot hexadecimal")), False),
    "png-xmp": (lambda: png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), True),
    "webp-zero-rational": (lambda: encode_image(PICTURE, "WEBP", lossless=True, exif=ZERO_RATIONAL), True),
    "webp-garbage": (lambda: encode_image(PICTURE, "WEBP", lossless=True, exif=b"Exif\0\0garbage"), False),
    "webp-xmp": (lambda: encode_image(PICTURE, "WEBP", lossless=True, xmp=XMP), True),
    "avif-garbage": (lambda: avif(b"garbage"), False),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_picture_with_bad_metadata_is_used(name: str) -> None:
    """Upright if the orientation can be read; otherwise unturned."""
    make, readable = DEFECTS[name]
    decoded = decode_image(make())
    upright = TURNED if readable else PICTURE
    assert decoded.pixels.shape == upright.shape
    assert np.abs(decoded.pixels.astype(int) - upright).mean() < 4, decoded
    assert decoded.defects == (() if readable else (UNREADABLE_EXIF,))


def test_write_beton_stores_pictures_with_bad_metadata(tmp_path: Path) -> None:
    """All of them in one file, none left out; before, one of them ended the command."""
    files = {f"{name}.{name.partition('-')[0]}": make() for name, (make, _) in DEFECTS.items()}
    for name, content in files.items():
        save_bytes(tmp_path / "images" / "only" / name, content)
    out = tmp_path / "x.beton"
    assert main(["imagefolder", str(tmp_path / "images"), "--out", str(out), "--mode", "raw", "--no-shuffle"]) == 0
    assert stored_images(out) == [decode_image(files[name]).pixels.tobytes() for name in sorted(files)]


def test_a_16_bit_pgm_says_what_white_is() -> None:
    """Each value of each maximum is rounded exactly, in both kinds of PGM."""
    for white in (256, 1021, 4095, 65535):
        values = np.unique(np.linspace(0, white, 999).astype(int))
        expected = np.array([round(255 * value / white) for value in values.tolist()])
        for content in (
            b"P5 %d 1 %d\n" % (len(values), white) + values.astype(">u2").tobytes(),
            b"P2 %d 1 %d\n" % (len(values), white) + " ".join(map(str, values)).encode(),
        ):
            assert decode_image(content).pixels.tolist() == [[[value] * 3 for value in expected]]


def test_white_of_a_tiff_is_what_the_file_says() -> None:
    """16 bits from black to white, from white to black (WhiteIsZero), and 12 bits."""
    deep = np.arange(0, 65536, 257, dtype=np.uint16)[None]
    gray = np.arange(256, dtype=np.uint8)[None]
    plain = encode_image(deep, "TIFF")
    inverted = encode_image(~deep, "TIFF", tiffinfo={262: 0})
    assert (decode_image(plain).pixels[..., 0] == gray).all()
    assert (decode_image(inverted).pixels[..., 0] == gray).all()
    twelve_bits = plain.replace(struct.pack("<HHIHH", 258, 3, 1, 16, 0), struct.pack("<HHIHH", 258, 3, 1, 12, 0))
    assert decode_image(twelve_bits).pixels.max() > 250


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_picture_without_an_agreed_white_is_refused(kind: type[Any]) -> None:
    """TIFFs with 32 bits per pixel."""
    with pytest.raises(BadImageError, match="no agreed white; save it with 8 or 16 bits"):
        decode_image(encode_image(PICTURE[..., 0].astype(kind), "TIFF"))


def test_pictures_larger_than_the_limit_are_refused() -> None:
    """Pillow's own limit is not changed."""
    content = encode_image(np.zeros((1000, 1001), np.uint8), "PNG")
    with pytest.raises(TooManyPixelsError, match="more than 1 megapixels"):
        decode_image(content, max_megapixels=1)
    assert decode_image(content, max_megapixels=2).pixels.shape == (1000, 1001, 3)
    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 12


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "TGA", "PPM", "QOI"])
def test_half_a_picture_is_refused(kind: str) -> None:
    """No format's missing pixels are filled in; neither is a PNG with a wrong checksum or an arithmetic-coded JPEG."""
    content = encode_image(PICTURE, kind)
    assert decode_image(content).pixels.shape == PICTURE.shape
    for half in (content[: len(content) // 2], ARITHMETIC[: len(ARITHMETIC) * 4 // 5]):
        with pytest.raises(BadImageError):
            decode_image(half)
    if kind == "PNG":
        with pytest.raises(BadImageError):
            decode_image(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
