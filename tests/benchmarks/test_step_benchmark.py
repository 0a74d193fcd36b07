"""The benchmark of a whole training step: its figures, and trainers that are not installed."""

import pytest
import torch

from benchmarks import step
from benchmarks.peers.rounds import Batches, Setup

SETUP = Setup("vit_ti16", 1, 2, "float32", torch.device("cpu"))


def trainer(name: str, *milliseconds: float) -> step.Trainer:
    """One with the times of its rounds, without a process."""
    out = object.__new__(step.Trainer)
    out.name, out.first_seconds = name, 1.0
    out.rounds = [{"wall": ms / 1e3, "cpu": ms / 1e3, "host": 0.0, "gb": None} for ms in milliseconds]
    return out


def test_each_ratio_is_the_median_over_rounds_and_missing_trainers_are_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Our time over the bare loop's; images per second over all others'."""
    figures = step.figures_of(
        SETUP, [trainer("ours", 10, 20, 30), trainer("bare", 10, 10, 20), trainer("timm", 20, 20, 20)]
    )
    assert figures["vs_bare"] == 1.5
    assert figures["vs_timm"] == 1.0
    assert figures["vs_lightning"] is None
    lines = capsys.readouterr().out.splitlines()
    assert sum("not installed" in line for line in lines) == 3


def test_the_time_of_a_round_contains_its_steps_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first steps, and the untimed ones of a round, do not count."""
    commands = iter(["1 2\n", ""])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(commands), raising=False)
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    shapes = [(tuple(images.shape), tuple(targets.shape)) for images, targets in Batches(SETUP)]
    assert shapes == 6 * [((2, 3, 224, 224), (2, 1000))]  # three first steps, one untimed, two timed
    assert '"wall": 1.0' in capsys.readouterr().out  # from 2 to 4: two ticks, two steps


def test_targets_are_soft_and_sum_to_one() -> None:
    images, targets = next(iter(Batches(SETUP)))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(2))
    assert (targets > 0).all() and images.dtype == torch.float32
