"""`python -m vit.augment` draws the images as a run sees them, and names those that are damaged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.data_sets import JPEGS, small_config
from tests.helpers.loading import overwrite
from vit.augment import __main__ as command
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config, to_yaml
from vit.data.beton import open_beton


def run(folder: Path, data: Path, *options: str, out: str = "sheet.png", cfg: Config | None = None) -> int:
    """The exit code of the command with two augmented versions of each image."""
    config = folder / "config.yaml"
    config.write_text(to_yaml(cfg or small_config(data)))
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


def sheet(folder: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(folder / "sheet.png"))


@pytest.mark.parametrize("small_images", ["decoded", "lanczos"])
def test_images_are_drawn_as_in_a_step(small_images: str, jpegs: Path, tmp_path: Path) -> None:
    """In its image size and with its magnitude of RandAugment; without `--step` in those of the last step."""
    cfg = small_config(jpegs)
    augmentation = replace(cfg.augment, randaugment_ops=2, randaugment_magnitude=30, randaugment_ramp=True, mixup=0.0)
    sized = replace(cfg, train_sizes=((0.5, 14), (0.5, 28)), augment=augmentation)
    sized = replace(sized, data=replace(cfg.data, small_images=small_images))
    steps = RunSchedule(sized, JPEGS).total_steps
    assert run(tmp_path, jpegs, cfg=sized) == 0
    last = sheet(tmp_path)
    assert run(tmp_path, jpegs, "--step", str(steps - 1), cfg=sized) == 0
    assert np.array_equal(sheet(tmp_path), last)
    assert last.shape == (6 * 28, 3 * 28, 3)
    assert run(tmp_path, jpegs, "--step", "0", cfg=sized) == 0
    assert sheet(tmp_path).shape == (6 * 14, 3 * 14, 3)
    constant = replace(augmentation, randaugment_magnitude=0, randaugment_ramp=False)
    assert run(tmp_path, jpegs, cfg=replace(sized, augment=constant, train_sizes=((1.0, 14),))) == 0
    of_magnitude_0 = sheet(tmp_path)
    assert run(tmp_path, jpegs, "--step", "0", cfg=sized) == 0
    assert np.array_equal(sheet(tmp_path), of_magnitude_0)


def test_a_step_that_the_run_does_not_have_is_refused(
    jpegs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, which names those that it has."""
    for step in (-1, 2):
        assert run(tmp_path, jpegs, "--step", str(step)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"vit.augment: --step must be in 0 to 1, the steps of this run, not {step}"
