"""A job that Slurm or a user stops saves at its next step, and the run resumes at exactly that step."""

import re

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.waiting import wait_for


def test_a_preempted_job_loses_no_step(case: Case, reference_weights: bytes) -> None:
    """USR2: a job of a higher partition takes the nodes; when it has ended the same job resumes."""
    job = case.start("--gpus", "1", "--nodes", "2")
    case.preempt_and_finish()
    assert case.job == job
    assert case.weights() == reference_weights


@campaign
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_job_that_is_preempted_without_a_signal_of_its_own_loses_no_step(
    nodes: str, case: Case, reference_weights: bytes
) -> None:
    """As most clusters are configured: TERM, and KILL after the partition's grace time."""
    case.slurm.set_user_signal(False)
    try:
        case.start("--gpus", "2", "--nodes", nodes)
        case.preempt_and_finish()
    finally:
        case.slurm.set_user_signal(True)
    assert case.weights() == reference_weights


@campaign
def test_a_job_that_cannot_save_in_its_grace_time_resumes_from_its_newest_checkpoint(
    case: Case, reference_weights: bytes
) -> None:
    """It is killed while a rank is stopped."""
    case.start("--gpus", "2", "--checkpoint.every_minutes", "0.005")
    with case.slowed() as hold:
        case.wait_until(lambda: case.events("checkpoint"), "a checkpoint")
        hold.set()
        case.slurm.call("scontrol", "requeue", case.job)
        case.wait_until(lambda: not case.ranks(), "the end of the ranks")
    case.finish()
    assert not case.events("stopped")
    assert case.resumed_from_newest_checkpoint()
    assert case.weights() == reference_weights


@campaign
def test_a_job_may_reach_its_time_limit_any_number_of_times(case: Case, reference_weights: bytes) -> None:
    """Four times here; by default submitit gives up after three."""
    case.start("--gpus", "2", "--time", "9", until_step=4)  # below ten minutes submitit counts each USR2 as a timeout
    for count in range(1, 5):
        with case.slowed(seconds=3):
            case.wait_until(lambda: len(case.start_steps()) == count, "the next start")  # noqa: B023
            case.wait_until(lambda: case.slurm.state(case.job) == "RUNNING", "the job to run")
            case.slurm.call("scontrol", "update", f"JobId={case.job}", "TimeLimit=2")
            case.wait_until(lambda: len(case.events("stopped")) == count, "the save")  # noqa: B023
            case.wait_until(lambda: case.slurm.state(case.job) == "PENDING", "the requeue")
        case.slurm.call("scontrol", "update", f"JobId={case.job}", "TimeLimit=60")
    case.finish()
    assert "(9996 remaining timeouts)" in case.job_output()
    assert case.start_steps() == [0, *(e["step"] for e in case.events("stopped"))]
    assert case.weights() == reference_weights


def test_a_job_that_an_admin_requeues_loses_no_step(case: Case, reference_weights: bytes) -> None:
    """`scontrol requeue`: TERM, and KILL later.  Submitting the run again while it is running is refused."""
    case.start("--gpus", "2")
    with case.slowed():
        refused = case.submit("--gpus", "2")
    assert refused.returncode == 1
    assert re.search(r"run is already running on n[12]\.\n  job +\d", refused.stderr)
    case.requeue_and_finish()
    assert case.weights() == reference_weights


def test_a_canceled_run_is_not_requeued_and_resumes_when_it_is_submitted_again(
    case: Case, reference_weights: bytes
) -> None:
    """`scancel` on two nodes; the same command resumes the run on one node, at the step that was saved."""
    job = case.start("--gpus", "1", "--nodes", "2")
    with case.slowed():
        case.slurm.call("scancel", job)
        again = case.submit("--gpus", "2")  # at once, while the ranks are still saving
    assert again.returncode == 0, again.stderr
    assert f"waiting for job {job} to end" in again.stdout
    assert case.job != job
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights
    assert case.slurm.state(job) == "CANCELLED"


@campaign
def test_a_job_that_may_not_be_requeued_ends_at_once_and_resumes_when_it_is_submitted_again(
    case: Case, reference_weights: bytes
) -> None:
    """`requeue: false`: Slurm refuses, and the job does not ask again."""
    case.start("--gpus", "2", "--requeue", "false")
    with case.slowed():
        case.slurm.call("scancel", "--signal", "TERM", case.job)
        case.wait_until(lambda: case.events("stopped"), "the save")
    wait_for(lambda: case.slurm.state(case.job) == "COMPLETED", "the end of the job", 30)
    assert "the job could not be requeued: " in case.job_output()
    assert case.submit("--gpus", "2").returncode == 0
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights
