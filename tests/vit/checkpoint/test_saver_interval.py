"""The automatic interval between checkpoints."""

import math
from pathlib import Path

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.savers import save_step, saver_on_rank
from vit.checkpoint.saver import MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS, optimal_interval
from vit.config.sections import CheckpointConfig


def test_the_interval_follows_young_and_daly() -> None:
    """Proportional to the square root of cost and of time between failures, within bounds."""
    day = 86_400.0
    assert optimal_interval(1, day) == pytest.approx((2 * day) ** 0.5, rel=0.01)
    assert optimal_interval(2, day) / optimal_interval(1, day) == pytest.approx(2**0.5, rel=0.01)
    assert optimal_interval(1, 2 * day) / optimal_interval(1, day) == pytest.approx(2**0.5, rel=0.01)
    # Brute force: the interval with the least expected loss for random failures, in the model of Daly's paper.
    cost, mean = 30.0, 6000.0
    loss = {t: mean / t * math.expm1((t + cost) / mean) for t in range(60, 1800)}
    assert abs(optimal_interval(cost, mean) - min(loss, key=lambda t: loss[t])) <= 2
    assert optimal_interval(1e-3, day) == MIN_INTERVAL_SECONDS
    assert optimal_interval(1e3, day) == optimal_interval(10, 1) == MAX_INTERVAL_SECONDS


def interval_after_a_save(run: Path, failure_hours: float) -> float:
    cfg = CheckpointConfig(expected_failure_hours=failure_hours)
    with saver_on_rank(run, 10, cfg) as (state, saver):
        assert saver.interval == MIN_INTERVAL_SECONDS
        save_step(state, saver, 1)
        assert not saver.due
        return saver.interval


def test_the_interval_is_computed_from_the_measured_cost(tmp_path: Path) -> None:
    """From the first save, a minute after the start; the interval is longer if failures are expected less often."""
    short = run_ranks(1, interval_after_a_save, tmp_path / "a", 0.1)
    long = run_ranks(1, interval_after_a_save, tmp_path / "b", 1e7)
    assert (short, long) == ([MIN_INTERVAL_SECONDS], [MAX_INTERVAL_SECONDS])
