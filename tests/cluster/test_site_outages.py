"""The controller is restarted, killed or slow while submit.py runs: one job, or none, and the user knows which."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.site_wrappers import wrapped
from tests.helpers.waiting import wait_for

# In place of sbatch, once: what happens to the controller just before, during or after its first call.
ONCE = """
flag={folder}/once
[ -e $flag ] && exec {command} "$@"
touch $flag
controller=$(cat {dir}/run/slurmctld.started)
restart() { : >{dir}/run/slurmctld.request; mv {dir}/run/slurmctld.request {dir}/run/slurmctld.restart; }
"""
FAULTS = {
    "restarted before": 'restart; sleep 0.1; exec {command} "$@"',
    "killed before": 'kill -9 $controller; (sleep 3; restart) >/dev/null 2>&1 & exec {command} "$@"',
    "slower than sbatch": 'kill -STOP $controller; (sleep 13; kill -CONT $controller) >/dev/null 2>&1 & '
    'exec {command} "$@"',
    "killed after": '{command} "$@"; code=$?; kill -9 $controller; (sleep 4; restart) >/dev/null 2>&1 & exit $code',
}  # fmt: skip


@campaign
@pytest.mark.parametrize("gpus", ["2", "1-2"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_controller_that_fails_while_a_run_is_submitted_makes_no_second_job(
    fault: str, gpus: str, case: Case, reference_weights: bytes, tmp_path: Path
) -> None:
    """What the first command cannot know, the same command finds out; the run trains once, to the same bits."""
    script = (ONCE + FAULTS[fault]).replace("{dir}", str(case.slurm.dir)).replace("{folder}", str(tmp_path))
    site = replace(case, slurm=wrapped(tmp_path / "bin", case.slurm, {"sbatch": script}))
    first = site.submit("--gpus", gpus)
    assert "Traceback" not in first.stderr
    wait_for(case.slurm.responds, "Slurm to respond", 60)
    if first.returncode:
        assert first.returncode == 1 and "run the same command again" in first.stderr, first
        assert not case.events("submitted")
        second = site.submit("--gpus", gpus)
        assert second.returncode == 0, second
    sizes = 1 if gpus == "2" else 2
    jobs = case.slurm.call("squeue", "--noheader", "--array", "--format=%i %j").splitlines()
    assert len([job for job in jobs if job.endswith(f" {case.run.path.name}")]) <= sizes, jobs
    again = site.submit("--gpus", gpus)
    assert again.returncode == (0 if case.run.finished() else 1), again
    case.wait_until(case.run.finished, "the end of the run")
    assert len(case.events("submitted")) == 1
    assert case.start_steps()[0] == 0
    assert case.weights() == reference_weights
