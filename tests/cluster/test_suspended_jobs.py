"""A job that an administrator suspends, and then requeues or signals."""

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.waiting import wait_for


@campaign
def test_a_job_that_is_requeued_while_it_is_suspended_is_held_and_the_run_resumes_by_the_same_command(
    case: Case, reference_weights: bytes
) -> None:
    """Slurm kills it without SIGTERM, and never starts it again by itself; status.py says what to do."""
    slurm, job = case.slurm, case.start("--gpus", "1", "--nodes", "2", "--checkpoint.every_minutes", "0.005")
    with case.slowed():
        case.wait_until(lambda: case.events("checkpoint"), "a checkpoint")
        slurm.call("scontrol", "suspend", job)
        wait_for(lambda: slurm.state(job) == "SUSPENDED", "the suspension")
        slurm.call("scontrol", "requeue", job)
        wait_for(lambda: slurm.job(job).get("Reason") == "JobHeldAdmin", "the job to be held")
    assert f"or scancel {job}, and submit again" in case.status()
    slurm.call("scancel", job)
    assert case.submit("--gpus", "2").returncode == 0
    case.finish()
    assert not case.events("stopped")
    assert case.resumed_from_newest_checkpoint()
    assert case.weights() == reference_weights


@campaign
def test_a_job_that_is_signaled_after_it_was_suspended_and_resumed_loses_no_step(
    case: Case, reference_weights: bytes
) -> None:
    """USR2, as before the time limit."""
    slurm, job = case.slurm, case.start("--gpus", "1", "--nodes", "2")
    with case.slowed():
        slurm.call("scontrol", "suspend", job)
        wait_for(lambda: slurm.state(job) == "SUSPENDED", "the suspension")
        slurm.call("scontrol", "resume", job)
        wait_for(lambda: slurm.state(job) == "RUNNING", "the end of the suspension")
        done = case.steps_done()
        case.wait_until(lambda: case.steps_done() > done, "the next step")  # else the signal may be lost on its way
        slurm.call("scancel", "--signal", "USR2", job)
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights
