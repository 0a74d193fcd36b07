"""Plugins of the site change a job or refuse it: the user sees their messages, and the run's record has what it got."""

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.site_plugins import missing_plugin, plugin

pytestmark = pytest.mark.skipif(bool(missing_plugin("job_submit")), reason=missing_plugin("job_submit"))
CHANGES = """
  slurm.log_user("Your job runs in partition high, for 40 minutes at most.")
  job.partition = "high"
  job.time_limit = 40
  job.comment = "changed by the site"
"""
REFUSES = """
  slurm.log_user("Your project has used up its hours.")
  slurm.log_user("See https://hpc.example.org/hours")
  if true then return slurm.ERROR end
"""


@campaign
@pytest.mark.parametrize("gpus", ["2", "1-2"])
def test_what_a_plugin_changes_is_printed_and_recorded(gpus: str, case: Case, reference_weights: bytes) -> None:
    """By submit.py, in the ledger and by status.py; the run is not affected."""
    with plugin(case.slurm, "job_submit", CHANGES):
        done = case.submit("--gpus", gpus)
        assert done.returncode == 0, done
        assert done.stderr.count("sbatch: Your job runs in partition high, for 40 minutes at most.") == 1
        changed = ["partition high instead of low", "time limit 00:40:00 instead of 01:00:00"]
        assert f"note: this cluster has changed the request: {', '.join(changed)}" in done.stderr
        accepted = case.events("accepted")
        assert len(accepted) == (1 if gpus == "2" else 2)
        for event in accepted:
            assert (event["partition"], event["time_limit"], event["changed"]) == ("high", "00:40:00", changed)
        assert f"the cluster changed the request: {', '.join(changed)}" in case.status()
        case.wait_until(case.run.finished, "the end of the run")
    assert case.weights() == reference_weights


def test_the_message_of_a_plugin_that_refuses_a_job_is_shown(case: Case) -> None:
    """In the one line that says that Slurm has rejected the job; by the estimate and the doctor's own jobs, too."""
    with plugin(case.slurm, "job_submit", REFUSES):
        refused = "Slurm rejected the job: Your project has used up its hours; See https://hpc.example.org/hours"
        for gpus in ("2", "1-2"):
            done = case.submit("--gpus", gpus)
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1] == f"submit.py: {refused}"
            assert not case.run.events()
        assert refused in case.submit("--gpus", "2", "--estimate").stdout
    assert not case.slurm.call("squeue", "--noheader")


@campaign
def test_the_message_of_a_filter_of_sbatch_is_shown(case: Case) -> None:
    """A cli_filter plugin runs in sbatch, before the controller is asked."""
    body = """
  if options["comment"] == "refused" then
    slurm.log_error("name a project, as comment")
    return slurm.ERROR
  end
  slurm.log_info("thank you")
"""
    with plugin(case.slurm, "cli_filter", body):
        done = case.submit("--gpus", "2", "--sbatch", "comment=refused")
        assert done.returncode == 1
        assert "name a project, as comment" in done.stderr.splitlines()[-1]
        done = case.submit("--gpus", "2", "--sbatch", "begin=now+60")
        assert done.returncode == 0
        assert "sbatch: lua: thank you" in done.stderr
