"""Whether a run moves to a larger job: from what it measured, and not for a gain that is too small."""

import time
from typing import Any

import pytest

from jobs.node.candidates import Candidate
from jobs.node.handover import RESUME_SECONDS, Measured, decide, gain_seconds, measure
from jobs.node.ownership import Claim
from vit.run.folder import Event

ONE, TWO, FOUR = (Candidate(str(ranks), 1, ranks) for ranks in (1, 2, 4))


def started(at: float, ranks: int, seconds: float = 20.0) -> Event:
    """An attempt of the ledger."""
    return {"event": "started", "time": at, "step": 0, "ranks": ranks, "seconds": {"start": seconds}}


def record(at: float, speed: float, left: float) -> dict[str, Any]:
    """A line of the learning curve."""
    return {"time": at, "step": 10, "loss": 1.0, "images_per_second": speed, "seconds_left": left, "seconds": {}}


def measured(left: float, **speeds: float) -> Measured:
    """What a run on one rank has measured: images/s of `r1`, `r2`, …"""
    return Measured({(int(name[1:]), ""): speed for name, speed in speeds.items()}, 60.0, left, (1, ""))


def test_a_larger_job_that_is_worth_it_gets_the_run() -> None:
    """Of an hour on one GPU, four GPUs of the same speed each need a quarter, and a minute to resume."""
    assert gain_seconds(measured(3600, r1=100), ONE, FOUR) == pytest.approx(3600 - 900 - 60)
    assert decide(measured(3600, r1=100), ONE, FOUR, 5).accepted


def test_a_gain_below_the_least_one_is_declined() -> None:
    """With the numbers in the answer; an equal or smaller job never gains."""
    answer = decide(measured(300, r1=100), ONE, FOUR, 5)
    assert not answer.accepted and answer.why == (
        "the run would end 2.8 minutes sooner on 4 GPUs, which is less than --min-gain 5"
    )
    assert decide(measured(300, r1=100), ONE, FOUR, 2.5).accepted
    for other in (ONE, Candidate("x", 1, 1, "")):
        assert not decide(measured(10**6, r1=100), ONE, other, 0).accepted


def test_a_size_that_was_measured_counts_as_measured() -> None:
    """Four ranks that were no faster than one, because they waited for images, do not get the run again."""
    assert not decide(measured(3600, r1=100, r4=101), ONE, FOUR, 5).accepted
    assert decide(measured(3600, r1=100, r4=350), ONE, FOUR, 5).accepted


def test_nothing_is_lost_before_the_first_step() -> None:
    """Of two jobs that start together, the larger one trains."""
    nothing = measure([], [], [])
    assert nothing.seconds_left is None and nothing.resume_seconds == RESUME_SECONDS
    assert decide(nothing, ONE, FOUR, 5).accepted
    assert not decide(nothing, FOUR, ONE, 5).accepted


def test_speeds_and_restarts_are_those_of_the_attempts() -> None:
    """The newest attempt of each size; the time to resume is the median of the last three; old records have aged."""
    now = time.time()
    events = [started(now - 1000, 1, 10), started(now - 500, 4, 30), started(now - 100, 1, 50)]
    records = [record(now - 900, 90, 5000), record(now - 400, 320, 1000), record(now - 60, 100, 3660)]
    found = measure(events, records, [])
    assert found.speeds == {(1, ""): 100, (4, ""): 320}
    assert found.resume_seconds == 30
    assert found.left_at == (1, "") and found.seconds_left == pytest.approx(3600, abs=5)


def test_the_time_to_resume_counts_from_the_claim_of_a_job() -> None:
    """Imports and checks come before the ranks; a restart in place needs neither."""
    now = time.time()
    claims = [Claim(ONE, "1.0", "n1", now - 1040, 1), Claim(FOUR, "4.0", "n1", now - 550, 2)]
    events = [started(now - 1000, 1, 10), started(now - 500, 4, 20), started(now - 100, 4, 5)]
    assert measure(events[:1], [], claims).resume_seconds == pytest.approx(40)
    assert measure(events[:2], [], claims).resume_seconds == pytest.approx(45)
    assert measure(events, [], claims).resume_seconds == pytest.approx(40)  # the median with the restart's 5


def test_types_of_gpus_are_told_apart() -> None:
    """By the claims: the speed of four v100 says nothing about that of four a100."""
    now = time.time()
    v100, a100 = Candidate("1", 1, 4, "v100"), Candidate("2", 1, 4, "a100")
    claims = [Claim(a100, "2.0", "n1", now - 1000, 1), Claim(v100, "1.0", "n1", now - 500, 2)]
    events = [started(now - 990, 4), started(now - 490, 4)]
    found = measure(events, [record(now - 900, 800, 500), record(now - 10, 200, 3600)], claims)
    assert found.speeds == {(4, "a100"): 800, (4, "v100"): 200}
    assert decide(found, v100, a100, 5).accepted
    assert not decide(found, a100, v100, 5).accepted


def test_damaged_records_are_left_out() -> None:
    """Of the ledger and of the learning curve."""
    now = time.time()
    events: list[Event] = [{"event": "started", "ranks": 2}, started(now - 100, 2) | {"seconds": "x"}]
    records = [
        record(now - 50, 100, 600),
        {"loss": 1.0, "step": 5},
        record(now - 40, 0, 550) | {"images_per_second": "x"},
    ]
    found = measure(events, records, [])
    assert found.speeds == {(2, ""): 100}
    assert found.left_at == (2, "")
    assert decide(found, TWO, FOUR, 0).accepted
