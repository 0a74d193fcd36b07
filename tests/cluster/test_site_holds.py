"""Jobs that are held and released, as a whole or one task of an array: nothing is submitted twice, nothing is lost."""

from dataclasses import replace

from tests.helpers.cluster_case import Case, campaign
from vit.run.folder import RunFolder

NEUTRAL = "data.prefetch"  # a setting that changes no bit of a run


@campaign
def test_one_task_of_a_sweep_is_held_requeued_on_hold_and_released(case: Case, reference_weights: bytes) -> None:
    """Status says that it is held; the same command submits neither it nor the others."""
    sweep = ("--gpus", "2", "--sweep", f"{NEUTRAL}=1,2")
    done = case.submit(*sweep, "--sbatch", "hold")
    assert done.returncode == 0, done
    runs = [replace(case, run=RunFolder(case.run.path / f"prefetch={n}")) for n in (1, 2)]
    array = runs[0].job.partition("_")[0]
    assert all("JobHeldUser" in run.status() for run in runs)
    case.slurm.call("scontrol", "release", f"{array}_0")
    with runs[0].slowed():
        runs[0].wait_until(lambda: runs[0].steps_done() > 2, "some steps")
        assert "2 already in the queue" in case.submit(*sweep).stdout
        case.slurm.call("scontrol", "requeuehold", f"{array}_0")
        runs[0].wait_until(lambda: runs[0].events("stopped"), "the save")
    runs[0].wait_until(lambda: "requeued in held state" in runs[0].status().replace("_", " "), "the task to be held")
    assert f"scontrol release {array}_0" in runs[0].status()
    assert "2 already in the queue" in case.submit(*sweep).stdout
    case.slurm.call("scontrol", "release", array)
    for run in runs:
        run.finish()
        assert run.weights() == reference_weights
    assert runs[0].start_steps() == [0, runs[0].stop_step()]
    assert runs[1].start_steps() == [0]


@campaign
def test_a_user_may_submit_several_sizes_on_hold(case: Case) -> None:
    """They are released by the user, and not by submit.py, which holds them while it submits."""
    done = case.submit("--gpus", "1-2", "--sbatch", "hold")
    assert done.returncode == 0, done
    jobs = [each["job"] for each in case.events("submitted")[0]["candidates"]]
    assert [case.slurm.job(job)["Reason"] for job in jobs] == ["JobHeldUser"] * 2
    again = case.submit("--gpus", "1-2", "--sbatch", "hold")
    assert again.returncode == 1 and "already in the queue" in again.stderr
    case.slurm.call("scontrol", "release", ",".join(jobs))
    case.wait_until(case.run.finished, "the end of the run")
