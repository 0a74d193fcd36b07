"""Sweeps over `train_sizes`, whose values have commas and brackets in brackets."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import pytest

from jobs.login.sweep import split_values, sweep_configs, sweep_points
from tests.helpers.paths import CONFIGS
from vit.config.parser import config_parser
from vit.config.user_error import UserError


class NoOtherValues:
    """A completion that finds no values."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, given: Mapping[str, Any], options: Namespace) -> Mapping[str, Any]:
        return {}


def test_a_sweep_over_train_sizes_has_a_run_for_each_list_of_rows() -> None:
    points = sweep_points(["train_sizes=[[0.5,14],[0.5,28]],[[0.25,14,64],[0.75,28]],[]", "seed=0,1"])
    assert [point.name for point in points[::2]] == [
        "train_sizes=0.5_14_0.5_28,seed=0",
        "train_sizes=0.25_14_64_0.75_28,seed=0",
        "train_sizes=none,seed=0",
    ]
    argv = ["--config", str(CONFIGS / "demo.yaml")]
    configs = sweep_configs(config_parser("sweep", ""), argv, points, [NoOtherValues()] * len(points))
    assert [cfg.train_sizes for cfg in configs[::2]] == [((0.5, 14), (0.5, 28)), ((0.25, 14, 64), (0.75, 28)), ()]


def test_wrong_train_sizes_in_a_sweep_are_refused_with_their_row() -> None:
    points = sweep_points(["train_sizes=[[0.5,14],[0.4,28]],[]"])
    argv = ["--config", str(CONFIGS / "demo.yaml")]
    with pytest.raises(UserError, match=r"--sweep train_sizes=.*must sum to 1, not 0.9"):
        sweep_configs(config_parser("sweep", ""), argv, points, [NoOtherValues()] * len(points))


@pytest.mark.parametrize(
    ("listed", "values"),
    [
        ("", [""]),
        ("1,2", ["1", "2"]),
        ("1,,2", ["1", "", "2"]),
        ("1,", ["1", ""]),
        ("[0.5,1],[0.6,1]", ["[0.5,1]", "[0.6,1]"]),
        ("[[0.5, 14], [0.5, 28]], [[1, 28]]", ["[[0.5, 14], [0.5, 28]]", " [[1, 28]]"]),
    ],
)
def test_commas_in_brackets_do_not_separate_values(listed: str, values: list[str]) -> None:
    assert split_values(listed) == values
