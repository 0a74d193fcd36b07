"""The expected end of a run counts the evaluations and checkpoints that are still to come."""

import time
from typing import Any

import pytest

from jobs.watch.time_left import expected_end
from vit.history.attempts import Attempt

LEFT = 700.0  # seconds of the remaining steps


def seconds_left(epoch: float, first_step: int = 0, **seconds: float) -> float | None:
    """The seconds until the end of a run at step 500 of 1,000 that spent so many `seconds`."""
    now = time.time()
    newest: dict[str, Any] = {"step": 500, "steps": 1000, "epoch": epoch, "epochs": 10, "seconds": seconds, "time": now}
    attempt = Attempt(number=1, began=now - 900)
    attempt.first_step = first_step
    ends = expected_end({"seconds_left": LEFT, "time": now}, newest, attempt)
    return None if ends is None else ends - now


def test_evaluations_do_not_take_longer_when_the_images_of_the_steps_have_grown() -> None:
    """In the first half, 100 s of steps and 20 s of evaluations; the second half has as many evaluations.

    Checkpoints follow the time: one every few minutes.
    """
    assert seconds_left(5.0, step=100.0, evaluate=20.0) == pytest.approx(LEFT + 20, abs=1)
    assert seconds_left(5.0, first_step=250, step=100.0, evaluate=20.0) == pytest.approx(LEFT + 40, abs=1)
    assert seconds_left(5.0, step=100.0, checkpoint=3.0) == pytest.approx(LEFT * 1.03, abs=1)


def test_evaluations_follow_the_time_of_the_steps_if_epochs_count_pixels() -> None:
    """After half of the steps, which were quick, it is in the second of ten epochs."""
    assert seconds_left(1.25, step=100.0, evaluate=20.0) == pytest.approx(LEFT * 1.2, abs=1)


def test_without_an_attempt_or_its_first_step_the_time_of_the_steps_counts() -> None:
    """The ledger of an old or damaged run may lack them."""
    now = time.time()
    newest = {"step": 500, "steps": 1000, "epoch": 5.0, "epochs": 10, "seconds": {"step": 100.0, "evaluate": 20.0}}
    ends = expected_end({"seconds_left": LEFT}, newest, None)
    assert ends is not None and ends - now == pytest.approx(LEFT * 1.2, abs=1)
    assert seconds_left(5.0, first_step=500, step=100.0, evaluate=20.0) == pytest.approx(LEFT * 1.2, abs=1)
