"""What the commands print about large images, and that Pillow's own messages do not reach the terminal."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, save_bytes, smooth
from tests.helpers.paths import CHECKOUT
from tests.helpers.write_command import single_stderr_line
from vit.data.dataset_manifest import read_dataset_manifest

CORRUPT_EXIF = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 99)  # 99 entries, none of which is there


def test_an_image_above_the_limit_is_admitted_by_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the option; the default is Pillow's limit of 179 megapixels."""
    folder = tmp_path / "images"
    path = save_bytes(folder / "only" / "large.png", encode_image(smooth(1000, 1001), "PNG", compress_level=1))
    arguments = ["imagefolder", str(folder), "--out", str(tmp_path / "x.beton"), "--max-resolution", "100"]
    assert main([*arguments, "--max-megapixels", "1"]) == 1
    line = single_stderr_line(capsys)
    assert f"{path}: cannot be used: it has more than 1 megapixels; admit it with --max-megapixels" in line
    assert main([*arguments, "--max-megapixels", "2"]) == 0
    save_bytes(path, b"")
    Image.new("1", (13_400, 13_400)).save(path)
    assert main([*arguments, "--force"]) == 1
    assert "it has more than 179 megapixels" in capsys.readouterr().err


def test_pillows_messages_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """A JPEG and a PNG with corrupt EXIF data, a TIFF with too many tags and a palette: they are counted instead."""
    only = tmp_path / "images" / "only"
    save_bytes(only / "copied.jpg", encode_image(smooth(30, 40), exif=CORRUPT_EXIF))
    save_bytes(only / "large.jpg", encode_image(smooth(600, 40), exif=CORRUPT_EXIF))
    palette = Image.fromarray(smooth(30, 40)).quantize(16)
    palette.save(only / "palette.png", transparency=bytes(range(16)))
    tiff = encode_image(smooth(30, 40), "TIFF", tiffinfo={282: 72.0})
    resolution = struct.pack("<HHI", 282, 5, 1)
    assert resolution in tiff
    save_bytes(only / "tags.tif", tiff.replace(resolution, struct.pack("<HHI", 282, 5, 100)))
    (only / "tags.tif").rename(only / "tags.png")  # the format is told by the content
    out = tmp_path / "x.beton"
    write = ["data_prep.write_beton", "imagefolder", str(only.parent), "--out", str(out)]
    for command in (write, ["data_prep.check_beton", str(out)]):
        shown = [sys.executable, "-W", "always", "-m", *command]
        run = subprocess.run(shown, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert "Warning" not in run.stderr
        assert "EXIF" not in run.stderr
    defects = read_dataset_manifest(out).defects
    assert defects["Corrupt EXIF data"] == 2
    assert len(defects) == 2
