"""Sites that wrap Slurm's commands, or set variables for them: the run is found, submitted once, and survives."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.site_wrappers import BANNER, COMMANDS, wrapped


def submit_again(case: Case, *options: str) -> None:
    """The same command does not submit a run that is in the queue."""
    again = case.submit(*options)
    assert again.returncode == 1, again
    assert "already in the queue" in again.stderr or "already running" in again.stderr, again
    assert len(case.events("submitted")) == 1


def requeue_and_finish(case: Case) -> None:
    """Requeues the job that trains, which may be one of several sizes, and waits for the end of the run."""
    case.wait_until(lambda: case.steps_done() > 2, "some steps")
    owner = case.events("supervising")[-1]["life"].partition(".")[0]
    with case.slowed():
        case.slurm.call("scontrol", "requeue", owner)
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.wait_until(case.run.finished, "the end of the run")


@campaign
@pytest.mark.parametrize("gpus", ["2", "1-2"])
def test_banners_of_wrappers_are_not_taken_for_answers(
    gpus: str, case: Case, reference_weights: bytes, tmp_path: Path
) -> None:
    """They have lines that look like a job's number and like tables; the job has the wrappers, too."""
    site = replace(case, slurm=wrapped(tmp_path / "bin", case.slurm, dict.fromkeys(COMMANDS, BANNER)))
    done = site.submit("--gpus", gpus)
    assert done.returncode == 0, done
    assert case.slurm.state(case.job), "the recorded number is that of a job"
    submit_again(site, "--gpus", gpus)
    requeue_and_finish(case)
    assert case.weights() == reference_weights


@campaign
@pytest.mark.parametrize(
    "script",
    [
        'shift $(($# - 1)); sed s/x/x/ "$1" | {command}; exit 0',  # from its standard input, so without a name
        '{command} --parsable "$@"',
        '{command} "$@" | sed "s/Submitted batch job/Your job has the number/"',
        '{command} "$@" >/dev/null; echo "Thank you. 3 jobs are ahead"',
    ],
)
def test_the_number_of_a_job_is_found_however_a_wrapper_tells_it(script: str, case: Case, tmp_path: Path) -> None:
    """In the last one it does not: Slurm's queue does."""
    site = replace(case, slurm=wrapped(tmp_path / "bin", case.slurm, {"sbatch": script}))
    done = site.submit("--gpus", "2", "--sbatch", "begin=now+60")
    assert done.returncode == 0, done
    assert case.slurm.state(case.job) == "PENDING"
    submit_again(site, "--gpus", "2")


def test_a_job_whose_number_is_not_told_is_not_left_in_the_queue(case: Case, tmp_path: Path) -> None:
    """A wrapper that hides the number and the script: one line says so, and nothing is recorded."""
    script = 'shift $(($# - 1)); {command} <"$1" >/dev/null; echo "Thank you"'
    site = replace(case, slurm=wrapped(tmp_path / "bin", case.slurm, {"sbatch": script}))
    done = site.submit("--gpus", "2", "--sbatch", "begin=now+60")
    assert done.returncode == 1
    assert "did not say the number of the job" in done.stderr
    assert "Thank you" in done.stderr and "Traceback" not in done.stderr
    assert not case.events("submitted")


@campaign
@pytest.mark.parametrize("gpus", ["2", "1-2"])
def test_variables_of_a_site_do_not_hide_jobs(
    gpus: str, case: Case, reference_weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of squeue, sinfo, scancel and sbatch: what waits is seen, and what is released is released."""
    for name, value in {
        "SQUEUE_STATES": "SUSPENDED", "SQUEUE_PARTITION": "high", "SQUEUE_FORMAT": "%i %j", "SQUEUE_FORMAT2": "name",
        "SINFO_FORMAT": "%P", "SINFO_PARTITION": "high", "SLURM_TIME_FORMAT": "relative", "SCANCEL_STATE": "SUSPENDED",
        "SCANCEL_INTERACTIVE": "1", "SACCT_FORMAT": "jobid", "SBATCH_TIMELIMIT": "3", "SBATCH_ARRAY_INX": "0-3",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    done = case.submit("--gpus", gpus)
    assert done.returncode == 0, done.stderr
    submit_again(case, "--gpus", gpus)
    requeue_and_finish(case)
    assert case.weights() == reference_weights
