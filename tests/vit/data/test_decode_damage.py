"""The C++ decoder refuses damaged and unsupported images, and no damage crashes it."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.decoding import decode_native
from tests.helpers.images import encode_jpeg, photograph_array
from tests.helpers.paths import CHECKOUT
from vit.data.decode import native_library
from vit.data.ffcv_format import JPEG

pytestmark = pytest.mark.skipif(native_library() is None, reason="the C++ decoder was not built")


def test_a_damaged_jpeg_is_detected_and_the_next_image_is_right() -> None:
    """Truncated before the end of the crop, not a JPEG at all, or of another size than its record says."""
    pixels = photograph_array(120, 160, 3)
    data, box = encode_jpeg(pixels), (40, 30, 70, 100)
    good = decode_native(JPEG, data, pixels.shape, box, 64)
    assert good is not None
    for broken in (data[: len(data) // 3], b"", b"not a picture", data[:20] + bytes(200) + data[220:]):
        assert decode_native(JPEG, broken, pixels.shape, box, 64) is None
        again = decode_native(JPEG, data, pixels.shape, box, 64)
        assert again is not None
        assert np.array_equal(again, good)
    assert decode_native(JPEG, data, (160, 120), box, 64) is None


@pytest.mark.parametrize("scaled", [False, True])
def test_unsupported_jpegs_are_refused(scaled: bool) -> None:
    """CMYK, 12-bit, lossless, and an invalid Huffman table; the next image is right."""
    pixels = photograph_array(64, 64, 0)
    data, box = encode_jpeg(pixels), (0, 0, 64, 64)
    frame, tables = data.index(b"\xff\xc0"), data.index(b"\xff\xc4")
    good = decode_native(JPEG, data, pixels.shape, box, 16, scaled=scaled)
    assert good is not None
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    twelve_bits = data[: frame + 4] + b"\x0c" + data[frame + 5 :]
    lossless = data[: frame + 1] + b"\xc3" + data[frame + 2 :]
    no_tables = data[:tables] + data[data.index(b"\xff\xda") :]
    invalid_table = data[: tables + 5] + b"\xff" * 16 + data[tables + 21 :]
    for other in (cmyk.getvalue(), twelve_bits, lossless, invalid_table):
        assert decode_native(JPEG, other, pixels.shape, box, 16, scaled=scaled) is None
        assert np.array_equal(decode_native(JPEG, data, pixels.shape, box, 16, scaled=scaled), good)
    decode_native(JPEG, no_tables, pixels.shape, box, 16)  # libjpeg uses the standard tables


DECODE = """
import sys
import numpy as np
from vit.data.decode import native_library

library, data, images = native_library(), np.fromfile(sys.argv[1], np.uint8), np.load(sys.argv[2])
out = np.empty(32 * 32 * 3, np.uint8)
for i, image in enumerate(images):
    scaled, cubic = i % 2, i % 3 == 0
    print(library.vit_decode_windows(data.ctypes.data, 1, image.ctypes.data, 32, scaled, cubic, out.ctypes.data) + 1)
"""


def test_no_damage_crashes_the_decoder_and_much_of_it_is_detected(tmp_path: Path) -> None:
    """Flipped bits, overwritten bytes, truncated files and damaged headers, 500 of each, decoded in another process.

    Flipping most bits of a JPEG gives a valid JPEG of another picture, which only a digest detects.
    """
    random, kinds = np.random.default_rng(0), ("flip", "bytes", "cut", "header")
    options = ({}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1})
    intact = [encode_jpeg(photograph_array(120, 160, i), quality=90, **option) for i, option in enumerate(options)]
    files, images, offset = [], [], 0
    for i in range(2000):
        data = bytearray(intact[i % len(intact)])
        body, end = data.index(b"\xff\xda") + 14, len(data)
        if (kind := kinds[i % 4]) == "flip":
            data[random.integers(body, end - 2)] ^= 1 << int(random.integers(8))
        elif kind == "bytes":
            data[(at := random.integers(body, end - 40)) : at + 20] = random.bytes(20)
        elif kind == "cut":
            del data[random.integers(0, end - 2) :]
        else:
            data[random.integers(2, body)] = int(random.integers(256))
        box = (0, 0, 120, 160) if i % 3 else (*random.integers(0, 60, 2), 60, 90)
        files.append(bytes(data))
        images.append([JPEG, 120, 160, offset, len(data), *box, 32, 32, 0, 0])
        offset += len(data)
    (tmp_path / "data").write_bytes(b"".join(files))
    np.save(tmp_path / "images.npy", np.array(images, np.int64))
    command = [sys.executable, "-c", DECODE, str(tmp_path / "data"), str(tmp_path / "images.npy")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    detected = np.array(done.stdout.split(), int).reshape(500, 4).sum(axis=0)  # of each kind
    assert (detected > (90, 250, 450, 150)).all(), dict(zip(kinds, detected, strict=True))
