"""A job that Slurm starts again although its run is over ends at once."""

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.waiting import wait_for


def start_again(case: Case, job: str, ends_as: str) -> None:
    """Requeues a job that has ended, as Slurm 24.05 and later do by themselves, and waits until it has ended again."""
    before = case.slurm.job(job)["Restarts"]
    case.slurm.call("scontrol", "requeue", job)
    wait_for(lambda: case.slurm.job(job)["Restarts"] > before, "the requeue")
    wait_for(lambda: case.slurm.state(job) == ends_as, "the second end of the job", 120)


@pytest.mark.parametrize("nodes", ["1", pytest.param("2", marks=campaign)])
def test_a_finished_run_whose_job_is_started_again_ends_at_once(nodes: str, case: Case) -> None:
    """Nothing is recorded, and the job has completed, so that jobs that wait for it start."""
    case.start("--gpus", "1", "--nodes", nodes, "--epochs", "2")
    case.finish()
    before = case.run.ledger.read_text()
    start_again(case, case.job, ends_as="COMPLETED")
    assert case.run.ledger.read_text() == before
    assert case.job_output().count("nothing to do: this run has finished, and Slurm started its job again") == 1


@campaign
def test_a_run_that_was_given_up_and_whose_job_is_started_again_ends_at_once(case: Case) -> None:
    """It fails again; the same command resumes it."""
    case.submit_raising("if step == 5:")
    wait_for(lambda: case.slurm.state(case.job) == "FAILED", "the end of the job", 120)
    before = case.run.ledger.read_text()
    start_again(case, case.job, ends_as="FAILED")
    assert case.run.ledger.read_text() == before
    assert "nothing to do: this run has given up" in case.job_output()
    assert case.submit("--gpus", "2").returncode == 0  # with the source of the checkout, which raises nothing
    case.finish()


@campaign
@pytest.mark.parametrize("user_signal", [True, False])
def test_a_run_that_finishes_in_the_grace_time_of_a_preemption_is_not_started_again(
    user_signal: bool, case: Case, reference_weights: bytes
) -> None:
    """Slurm 24.05 and later requeue the job; the mark for that stays until it has completed."""
    if not user_signal:
        case.slurm.set_user_signal(False)
    try:
        case.start("--gpus", "1", "--nodes", "2")
        case.preempt_and_finish()
        case.slurm.wait_until_idle()
        assert case.slurm.state(case.job) == "COMPLETED"
    finally:
        if not user_signal:
            case.slurm.set_user_signal(True)
    assert case.start_steps() == [0, case.stop_step()]
    assert len(case.events("supervising")) == 2
    assert case.weights() == reference_weights
