"""Which JPEGs are copied unchanged, and which are encoded again."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep import jpeg
from data_prep.beton_reader import read_beton_index
from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, save_bytes, smooth
from tests.helpers.imagenet import GRAY, PICTURE, adobe_rgb_jpeg, cmyk_jpeg
from tests.helpers.write_command import stored_images, write_beton
from vit.data.dataset_manifest import read_dataset_manifest


def make_files() -> dict[str, tuple[bytes, bool]]:
    """Image files by name, and whether each can be copied unchanged."""
    exif = Image.Exif()
    exif[0x0110] = "camera"
    rotated = Image.Exif()
    rotated[0x0112] = 3
    plain = encode_image(PICTURE)
    without_jfif = plain[:2] + plain[20:]
    return {
        "plain": (plain, True),
        "444": (encode_image(PICTURE, subsampling=0), True),
        "camera": (encode_image(PICTURE, exif=exif), True),
        "restarts": (encode_image(PICTURE, restart_marker_blocks=2), True),
        "no-jfif": (without_jfif, True),
        "fill-bytes": (plain[:2] + b"\xff\xff" + plain[2:], True),
        "large": (encode_image(smooth(60, 501)), False),
        "padded": (plain + bytes(2_000_000), False),  # more bytes than the largest image may have
        "rotated": (encode_image(PICTURE, exif=rotated), False),
        "progressive": (encode_image(PICTURE, progressive=True), False),
        "gray": (encode_image(GRAY), False),
        "cmyk": (cmyk_jpeg()[0], False),
        "rgb": (adobe_rgb_jpeg()[0], False),
        "png": (encode_image(PICTURE, "PNG"), False),
        "zeros-at-the-end": (plain[:-2] + bytes(20) + b"\xff\xd9", False),  # harmless, but FFCV refuses it
    }


def test_small_baseline_jpegs_are_copied_byte_for_byte(tmp_path: Path) -> None:
    """Other files are encoded; with --reencode, all are."""
    files = make_files()
    folder = tmp_path / "images"
    for name, (content, _) in files.items():
        save_bytes(folder / "only" / f"{name}.JPEG", content)
    out = write_beton(tmp_path / "x.beton", "imagefolder", folder, "--no-shuffle")
    copied = {name: content == files[name][0] for name, content in zip(sorted(files), stored_images(out), strict=True)}
    assert copied == {name: can_be_copied for name, (_, can_be_copied) in files.items()}
    assert read_dataset_manifest(out).image.copied == 6
    again = write_beton(tmp_path / "y.beton", "imagefolder", folder, "--no-shuffle", "--reencode")
    assert read_dataset_manifest(again).image.copied == 0
    assert not {content for content, _ in files.values()} & set(stored_images(again))
    for beton in (out, again):
        with beton.open("rb") as file:
            index = read_beton_index(beton, 1)
            assert all(index.read_pixels(file.fileno(), i).any() for i in range(len(index)))
    # With --reencode, the first file is not the one that was asked for.
    assert main(["imagefolder", str(folder), "--no-shuffle", "--out", str(out), "--reencode"]) == 1


def test_jpegs_that_decoders_decode_differently_are_not_copied() -> None:
    """One change in the header at a time: color space, sampling, precision, frame type, scans, height, truncation."""
    plain = encode_image(PICTURE)
    frame, scan = plain.index(b"\xff\xc0"), plain.index(b"\xff\xda")
    assert jpeg.baseline_size(plain) == (60, 80)
    adobe = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"
    start, without_jfif = plain[:2], plain[20:]
    assert jpeg.baseline_size(start + adobe + b"\x01" + without_jfif) == (60, 80)
    assert jpeg.baseline_size(start + adobe + b"\x00" + without_jfif) is None
    assert jpeg.baseline_size(start + adobe + b"\x00" + plain[2:]) == (60, 80)  # JFIF takes precedence
    named_rgb = bytearray(start + without_jfif)
    for i, name in enumerate(b"RGB"):
        named_rgb[frame - 18 + 10 + 3 * i] = name
    assert jpeg.baseline_size(bytes(named_rgb)) is None
    for position, value in (
        *((frame + 11, 0x41), (frame + 11, 0x44), (frame + 14, 0x21), (frame + 17, 0x12)),  # sampling of Y, Cb, Cr
        *((frame + 4, 12), (frame + 1, 0xC1), (frame + 1, 0xC9), (frame + 9, 4), (scan + 4, 1)),
        *((frame + 3, 0), (scan, 0), (0, 0)),
    ):
        changed = bytearray(plain)
        changed[position] = value
        assert jpeg.baseline_size(bytes(changed)) is None, (position, value)
    no_height = bytearray(plain)
    no_height[frame + 5 : frame + 7] = b"\0\0"
    assert jpeg.baseline_size(bytes(no_height)) is None
    for length in range(scan + 4):
        assert jpeg.baseline_size(plain[:length]) is None


def test_mode_raw_stores_the_pixels_of_jpegs(tmp_path: Path) -> None:
    """The stored bytes are the pixels that Pillow decodes."""
    content = encode_image(PICTURE)
    save_bytes(tmp_path / "images" / "only" / "a.JPEG", content)
    out = write_beton(tmp_path / "x.beton", "imagefolder", tmp_path / "images", "--mode", "raw")
    assert stored_images(out) == [np.asarray(Image.open(io.BytesIO(content))).tobytes()]
