"""Makes 285 odd image files: formats, modes, depths, orientations, kinds of JPEGs, palettes, frames and thin sizes."""

import base64
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from tests.helpers.image_files import Pixels, smooth

HEIGHT, WIDTH = 33, 47
PICTURE: Pixels = np.clip(smooth(HEIGHT, WIDTH).astype(int) // 2 + np.arange(WIDTH)[:, None] * 2, 0, 255).astype(
    np.uint8
)
DEEP = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 42).astype(np.uint16)

# 16 x 24 pixels, as libjpeg writes them with `arith_code`, which no Python library offers.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5"
    "PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/yQAR"
    "CAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ALvdwnyvWR5/uIq3o98gGi9rex6PvjSp2CED7uYHRYBNnax8xpbT"
    "MI28vv24Nvq3ysNdJgFQFXadUUY/QKf5KrF49MnbiALm4XJ58lJL0f/Z"
)

# Modes that Pillow writes in each format.
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "JPEG": ("L", "RGB", "CMYK"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "WEBP": ("L", "RGB", "RGBA"),
    "AVIF": ("L", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "DIB": ("L", "RGB"),
    "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "PPM": ("1", "L", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "IM": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
    "ICO": ("L", "RGB", "RGBA"),
    "DDS": ("L", "LA", "RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "XBM": ("1",),
    "MSP": ("1",),
}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file, encoded by Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def in_mode(mode: str, pixels: Pixels = PICTURE) -> Image.Image:
    """The picture in a mode of Pillow; transparent in the left half if the mode can be."""
    image = Image.fromarray(pixels)
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) * 5, (HEIGHT, 1))))
        return image
    return image.convert(mode)


def odd_images() -> Iterator[tuple[str, bytes]]:
    """Name and content of each file."""
    for kind, modes in MODES.items():
        for mode in modes:
            yield f"{kind}-{mode}", encoded(in_mode(mode), kind)
    yield from jpegs()
    yield from oriented()
    yield from deep()
    yield from palettes()
    yield from several_frames()
    for height, width in ((1, 1), (1, 300), (300, 1), (2, 499), (500, 3), (8, 8), (7, 9)):
        image = Image.fromarray(smooth(height, width))
        for kind in ("PNG", "JPEG", "GIF", "WEBP"):
            yield f"{kind}-{height}x{width}", encoded(image, kind)
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield f"TIFF-{compression}", encoded(in_mode("RGB"), "TIFF", compression=compression)
    yield "PNG-interlaced", interlaced_png(PICTURE[..., 0])
    yield "TGA-rle", encoded(in_mode("RGB"), "TGA", compression="tga_rle")
    yield "WEBP-lossless", encoded(in_mode("RGBA"), "WEBP", lossless=True)


def jpegs() -> Iterator[tuple[str, bytes]]:
    """JPEGs of every kind that encoders at hand write."""
    rgb, gray, cmyk = in_mode("RGB"), in_mode("L"), in_mode("CMYK")
    for quality, subsampling, progressive in itertools.product((1, 60, 100), (0, 1, 2), (False, True)):
        name = f"JPEG-q{quality}-s{subsampling}" + "-progressive" * progressive
        yield name, encoded(rgb, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    for factor in (411, 420, 422, 440, 444):  # 4:1:1 and 4:4:0 are beyond Pillow
        setting = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")
        _, content = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, setting])
        yield f"JPEG-{factor}", content.tobytes()
    for name, image in (("rgb", rgb), ("gray", gray), ("cmyk", cmyk)):
        yield f"JPEG-{name}-restarts", encoded(image, "JPEG", restart_marker_blocks=2)
        yield f"JPEG-{name}-progressive", encoded(image, "JPEG", progressive=True, optimize=True)
        yield f"JPEG-{name}-progressive-restarts", encoded(image, "JPEG", progressive=True, restart_marker_rows=1)
    plain = encoded(rgb, "JPEG")
    yield "JPEG-keep-rgb", encoded(rgb, "JPEG", keep_rgb=True)
    yield "JPEG-no-jfif", plain[:2] + plain[20:]
    yield "JPEG-adobe-ycbcr", plain[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x01" + plain[20:]
    yield "JPEG-adobe-rgb", plain[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x00" + plain[20:]
    yield "JPEG-comment-and-profile", encoded(rgb, "JPEG", comment=b"\xff\xd8\xff", icc_profile=bytes(70_000))
    yield "JPEG-trailing", plain + plain
    yield "JPEG-arithmetic", ARITHMETIC


def oriented() -> Iterator[tuple[str, bytes]]:
    """EXIF orientations 0 to 9, of which 1 to 8 mean something, and one in XMP."""
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = orientation, "camera"
        for kind, mode, options in (
            ("JPEG", "RGB", {}),
            ("JPEG", "L", {"progressive": True}),
            ("JPEG", "CMYK", {}),
            ("PNG", "P", {}),
            ("TIFF", "RGB", {"compression": "tiff_lzw"}),
            ("WEBP", "RGBA", {"lossless": True}),
            ("AVIF", "RGB", {}),
        ):
            if kind != "TIFF" or 1 <= orientation <= 8:
                yield f"{kind}-{mode}-orientation-{orientation}", encoded(in_mode(mode), kind, exif=exif, **options)
    yield "JPEG-xmp", encoded(in_mode("RGB"), "JPEG", xmp=b'<x tiff:Orientation="8"/>')


def deep() -> Iterator[tuple[str, bytes]]:
    """More than 8 bits per channel."""
    for kind in ("PNG", "TIFF", "JPEG2000"):
        yield f"{kind}-16", encoded(Image.fromarray(DEEP), kind)
    for name, pixels in (
        ("gray", DEEP),
        ("rgb", np.dstack([DEEP, DEEP[::-1], ~DEEP])),
        ("rgba", np.dstack([DEEP] * 4)),
    ):
        yield f"PNG-{name}-16", cv2.imencode(".png", pixels)[1].tobytes()
    yield "TIFF-big-endian-16", encoded(Image.fromarray(DEEP.astype(">u2")), "TIFF")
    for white in (1, 15, 300, 1023, 4095, 65535):
        values = (DEEP.astype(int) * white // 65535).astype(">u2" if white > 255 else "u1")
        size = b" %d %d %d\n" % (WIDTH, HEIGHT, white)
        yield f"PGM-{white}", b"P5" + size + values.tobytes()
        yield f"PGM-plain-{white}", b"P2" + size + " ".join(map(str, values.ravel())).encode()
        yield f"PPM-color-{white}", b"P6" + size + np.dstack([values] * 3).tobytes()


def palettes() -> Iterator[tuple[str, bytes]]:
    """Palettes of few colors, with and without transparency."""
    for colors in (2, 4, 16, 256):
        image = in_mode("RGB").quantize(colors)
        for kind in ("PNG", "GIF", "BMP", "TIFF"):
            yield f"{kind}-{colors}-colors", encoded(image, kind)
        for name, transparency in (("index", 1), ("alpha", bytes(range(colors)))):
            yield f"PNG-{colors}-colors-{name}", encoded(image, "PNG", transparency=transparency)
    for mode, transparency in (("L", 100), ("RGB", (10, 20, 30)), ("1", 0)):
        yield f"PNG-{mode}-transparent", encoded(in_mode(mode), "PNG", transparency=transparency)


def several_frames() -> Iterator[tuple[str, bytes]]:
    """Animations and files of several pictures, whose first one counts."""
    for kind, mode in itertools.product(("GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"), ("RGB", "L")):
        others = [ImageOps.invert(in_mode(mode)), in_mode(mode, PICTURE[::-1].copy())]
        yield f"{kind}-{mode}-frames", encoded(in_mode(mode), kind, save_all=True, append_images=others)
    others = [ImageOps.invert(in_mode("RGB"))]
    yield "PNG-default-image", encoded(in_mode("RGB"), "PNG", save_all=True, append_images=others, default_image=True)
    yield "GIF-transparent-frames", encoded(in_mode("P"), "GIF", save_all=True, append_images=others, transparency=3)


def interlaced_png(gray: Pixels) -> bytes:
    """A gray PNG in the seven passes of Adam7, which Pillow reads but does not write."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = [row.tobytes() for top, down, left, across in passes for row in gray[top::down, left::across]]
    header = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def expected_pixels(content: bytes) -> Pixels:
    """Pillow's own conversion to upright 8-bit RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # as Pillow advises; the colors are the same
    if image.mode.startswith(
        "I"
    ):  # of 16 bits, which Pillow would clip; a PGM is rounded, and others keep their high bits
        values = np.asarray(image).astype(int)
        gray = (values >> 8 if image.mode != "I" else np.rint(values / 257)).astype(np.uint8)
        return np.dstack([gray] * 3)
    return np.asarray(image.convert("RGB"))
