"""`--ranks 4,2,1` runs a step on other numbers of ranks, in real processes, and compares gradients and weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import short_config
from tests.helpers.replayed_runs import contents, replay, replayed, train_on
from vit.replay.ranks import Bits


def test_a_step_has_the_same_bits_on_any_number_of_ranks(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients, and weights, optimizer state and EMA after the update; the run is not changed."""
    before = contents(trained)
    found = replayed(capsys, trained, 4, "--ranks", "4,2,1")
    assert found["same"]
    head, here, *others = found["ranks"]
    assert head.split() == ["ranks", "loss", "gradients", "after", "the", "update"]
    assert [line.split()[0] for line in others] == ["4", "2", "1"]
    for line in others:
        assert line.endswith("the same bits")
        assert line.split()[1:4] == here.split()[1:4]
    assert contents(trained) == before


def test_another_order_of_the_sum_is_seen(betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six micro-batches on two ranks: the replay on one rank differs from the run, from two ranks, not from three."""
    run, cfg = tmp_path / "six", short_config(betons)
    train_on(2, run, replace(cfg, micro_batch=16, augment=replace(cfg.augment, mixup=0.0, cutmix=0.0)))
    assert replay(run, "--step", "3", "--ranks", "2,3") == 0
    *_, on_two, on_three = capsys.readouterr().out.splitlines()
    assert (on_two.split()[0], on_three.split()[0]) == ("2", "3")
    assert "differs: gradient of " in on_two
    assert on_three.endswith("the same bits")


def test_what_differs_is_named() -> None:
    """Losses, gradients, and the tensors of the state."""
    one = Bits([1.0], {"head.weight": 1}, {"model.head.weight": 2, "optimizer.head.weight.exp_avg": 3})
    assert one.differing(one) == []
    other = Bits([1.5], {"head.weight": 4}, {"model.head.weight": 2, "optimizer.head.weight.exp_avg": 5})
    assert one.differing(other) == ["losses", "gradient of head.weight", "optimizer.head.weight.exp_avg"]


@pytest.mark.parametrize(("ranks", "reason"), [("3", "3"), ("two", "must be numbers separated by commas"), ("0", "0")])
def test_a_wrong_number_of_ranks_is_one_line(
    ranks: str, reason: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that does not divide the micro-batches, or is none."""
    try:
        code = replay(trained, "--step", "2", "--ranks", ranks)
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vit.replay: ") and reason in line
