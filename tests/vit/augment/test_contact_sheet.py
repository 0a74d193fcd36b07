"""`python -m vit.augment` draws the images as a run sees them, and names those that are damaged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.data_sets import small_config
from tests.helpers.loading import overwrite
from vit.augment import __main__ as command
from vit.config.schema import to_yaml
from vit.data.beton import open_beton


def run(folder: Path, data: Path, *options: str, out: str = "sheet.png") -> int:
    """The exit code of the command with two augmented versions of each image."""
    config = folder / "config.yaml"
    config.write_text(to_yaml(small_config(data)))
    return command.main(["--config", str(config), "--out", str(folder / out), "--draws", "2", *options])


def test_a_damaged_image_is_named_and_the_others_are_drawn(
    jpegs_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other rows begin with the same center crop as before; one line on stderr, exit code 1."""
    folder = jpegs_copy.parent
    assert run(folder, jpegs_copy, "--images", "4") == 0
    before = np.asarray(Image.open(folder / "sheet.png")).reshape(4, 28, 3, 28, 3)
    overwrite(jpegs_copy, int(open_beton(jpegs_copy).offset[1]), bytes(64))
    capsys.readouterr()
    assert run(folder, jpegs_copy, "--images", "4") == 1
    after = np.asarray(Image.open(folder / "sheet.png")).reshape(3, 28, 3, 28, 3)
    assert np.array_equal(after[:, :, 0], before[[0, 2, 3]][:, :, 0])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vit.augment: {jpegs_copy}: sample 1 (") and line.endswith("; skipped")


def test_a_sheet_that_cannot_be_drawn_is_refused_in_one_line(
    jpegs_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of its images are damaged, or the output is no image file."""
    overwrite(jpegs_copy, int(open_beton(jpegs_copy).offset[0]), bytes(64))
    for options, out, reason in (
        (("--images", "1"), "sheet.png", "sample 0"),
        ((), "sheet.xyz", "extension"),
        ((), "sheet", "extension"),
    ):
        assert run(jpegs_copy.parent, jpegs_copy, *options, out=out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line and not (jpegs_copy.parent / out).exists()
