"""Runs that were submitted in several sizes: which job trained when, and what the run waited for."""

from typing import Any

import pytest

from tests.vit.history.test_attempts import event, started
from vit.history.attempts import read_attempts
from vit.history.submissions import jobs_of
from vit.history.time_spent import time_spent

SIZES = [{"job": "13", "nodes": 1, "gpus": 4, "gpu_type": ""}, {"job": "12", "nodes": 1, "gpus": 1, "gpu_type": ""}]
SUBMITTED = event("submitted", 100, job="13", candidates=SIZES)
SMALL_FIRST = [
    SUBMITTED,
    event("supervising", 160, life="12.0", node="n1"),
    started(170, 0),
    event("handover", 268, to="13", ranks=4, life="12.0"),
    event("stopped", 271, step=50, seconds={"start": 5, "step": 90}),
    event("supervising", 275, life="13.0", node="n2", began=240),
    started(280, 50),
    event("finished", 510, step=100, seconds={"start": 5, "step": 95}, val_top1=0.5),
]


def test_a_job_that_hands_over_says_to_which() -> None:
    """And the run waits only from the end of the one to the beginning of the other."""
    small, large = read_attempts(SMALL_FIRST)
    assert (small.job, small.ending, small.why) == ("12.0", "stopped", "handed over to job 13 (4 GPUs)")
    assert (small.queued, small.idle, small.ended) == (60, 0, 271)
    assert (large.job, large.ending, large.queued, large.idle) == ("13.0", "finished", 0, 0)
    spent = time_spent([small, large])
    assert spent.seconds["queue"] == 60
    assert spent.total == 510 - 100


@pytest.mark.parametrize("life", ["12.1", "13.0"])
def test_a_run_waits_while_none_of_its_jobs_runs(life: str) -> None:
    """Whichever of them is the next to start; the one before was preempted."""
    stop = event("told to stop", 268, life="12.0", signal="SIGTERM")
    events = [*SMALL_FIRST[:3], stop, SMALL_FIRST[4], event("supervising", 400, life=life), started(410, 50)]
    first, second = read_attempts(events)
    assert (first.why, first.ended) == ("preempted", 271)
    assert (second.queued, second.idle) == (400 - 271, 0)


def test_a_job_that_is_killed_while_it_hands_over_says_so() -> None:
    """It had no time to save."""
    events = [*SMALL_FIRST[:4], *SMALL_FIRST[5:]]
    assert read_attempts(events)[0].why == "handed over to job 13 (4 GPUs), but killed before it had saved"


def test_a_handover_of_another_attempt_is_not_this_ones() -> None:
    """It is recorded with the start of the job that hands over."""
    stop = event("told to stop", 269, life="12.0", signal="SIGTERM")
    events = [*SMALL_FIRST[:3], SMALL_FIRST[3] | {"life": "11.0"}, stop, *SMALL_FIRST[4:]]
    assert read_attempts(events)[0].why == "preempted"


def test_one_cancel_is_told_as_such_whoever_records_it() -> None:
    """The job that trains, before its ranks have saved; or another one, afterwards."""
    told, canceled = event("told to stop", 268, life="12.0", signal="SIGTERM"), event("canceled", 269, job="12")
    first = [*SMALL_FIRST[:3], told, canceled, SMALL_FIRST[4]]
    assert read_attempts(first)[0].why == "canceled"
    assert read_attempts([*SMALL_FIRST[:3], told, SMALL_FIRST[4], canceled])[0].why == "canceled"
    resumed = [*first, SUBMITTED | {"time": 300}, event("supervising", 320, life="12.0"), started(330, 50)]
    again = [*resumed, told | {"time": 340}, SMALL_FIRST[4] | {"time": 341}]
    assert [attempt.why for attempt in read_attempts(again)] == ["canceled", "preempted or canceled"]


def test_the_size_is_told_with_its_nodes_and_type() -> None:
    """As the job that hands over has recorded it."""
    events = [*SMALL_FIRST[:3], SMALL_FIRST[3] | {"size": "2 x 2 a100 GPUs"}, *SMALL_FIRST[4:]]
    assert read_attempts(events)[0].why == "handed over to job 13 (2 x 2 a100 GPUs)"


def test_on_cpus_the_size_is_in_ranks() -> None:
    """There are no GPUs."""
    events = [*SMALL_FIRST[:2], started(170, 0) | {"device_name": "cpu"}, *SMALL_FIRST[3:]]
    assert read_attempts(events)[0].why == "handed over to job 13 (4 ranks)"


@pytest.mark.parametrize(
    ("candidates", "jobs"),
    [(SIZES, {"12", "13"}), (None, {"13"}), ("damaged", {"13"}), ([1, {"no job": 2}, {"job": "12"}], {"12", "13"})],
)
def test_the_jobs_of_a_submission_are_read_from_damaged_events_too(candidates: Any, jobs: set[str]) -> None:
    """As far as they are known."""
    assert jobs_of(SUBMITTED | {"candidates": candidates}) == jobs
    assert jobs_of(event("submitted", 1)) == set()
