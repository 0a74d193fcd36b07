"""The demo of several image sizes has the cost that configs/README.md states."""

import re

import pytest

from tests.helpers.paths import CONFIGS
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.history.utilization import training_flops_per_image

IMAGES = 60_000


def operations(*options: str) -> float:
    """10¹² operations of all steps."""
    schedule = RunSchedule(load_config(CONFIGS / "demo_sizes.yaml", *options), IMAGES)
    steps = ((stage.stop - stage.start, stage.cfg) for stage in schedule.stages)
    return sum(count * cfg.global_batch * training_flops_per_image(cfg.model) for count, cfg in steps) / 1e12


def test_the_demo_of_three_sizes_takes_a_sixth_fewer_operations_for_the_same_images() -> None:
    fixed, sizes = load_config(CONFIGS / "demo_sizes.yaml", "--train_sizes", "[]"), ("--train_sizes", "[]")
    cfg = load_config(CONFIGS / "demo_sizes.yaml")
    assert RunSchedule(cfg, IMAGES).total_steps == RunSchedule(fixed, IMAGES).total_steps
    assert [stage.cfg.model.image_size for stage in RunSchedule(cfg, IMAGES).stages] == [20, 24, 28]
    assert operations() / operations(*sizes) == pytest.approx(5 / 6, abs=0.01)
    rows = re.findall(
        r"^\| \**2[08].* pixels.*?\| \**([\d.]+)\** \|", (CONFIGS / "README.md").read_text(), re.MULTILINE
    )
    assert [float(row) for row in rows] == pytest.approx([operations(*sizes), operations()], abs=0.05)
