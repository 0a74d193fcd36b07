"""Options that Slurm would refuse, or leave pending forever, are reported in one line before anything is submitted."""

import re
import sys
import time

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder

REFUSED = [
    (("--partition", "gpuu"), "--partition gpuu: no such partition; available: hasty, high, low, short"),
    (
        ("--device", "auto", "--gpus", "8", "--micro_batch", "8"),
        "--gpus 8: nodes of partition low have at most 4; use --nodes for more",
    ),
    (("--partition", "short"), "--time 1:00:00: the limit of partition short is 30 minutes; use --time 30"),
    (("--nodes", "4"), "--nodes 4: partition low has only 2"),
    (("--cpus-per-gpu", "17"), "--cpus-per-gpu 17: needs 17 cores, nodes of partition low have at most 16"),
    (("--mem", "1T"), "--mem 1T: nodes of partition low have at most 20000 MB"),
    (("--reservation", "monday"), "--reservation monday: Slurm says Requested reservation is invalid"),
    (("--constraint", "h100"), "--constraint h100: Slurm says Invalid feature specification"),
    (("--sbatch", "no-such-option=1"), "unrecognized option"),
]


def refused(case: Case, *options: str) -> str:
    """The one line that the command prints.  It must leave nothing that another try would find."""
    done = case.submit(*options)
    assert done.returncode in {1, 2}, done.stdout + done.stderr
    assert case.run.last("submitted") is None
    assert not case.run.config.exists()
    (line,) = done.stderr.splitlines()
    return line.removeprefix("submit.py: ")


def test_options_that_slurm_would_refuse_are_reported_in_one_line(case: Case) -> None:
    """With the option, what was requested, and what is available."""
    for options, message in REFUSED:
        assert message in refused(case, *options), options
    assert case.slurm.call("squeue", "--noheader") == ""


@campaign
def test_an_account_or_qos_without_access_is_reported_with_those_that_have(case: Case) -> None:
    """Where Slurm enforces them."""
    case.slurm.enforce_accounts(True)
    try:
        line = refused(case, "--account", "nosuch")
        assert re.match(r"--account nosuch: Slurm says Invalid account .*; yours: .*vision", line)
        assert re.match(r"--qos nosuch: Slurm says Invalid qos .*; yours: normal", refused(case, "--qos", "nosuch"))
        done = case.submit("--account", "vision")
        assert done.returncode == 0, done.stderr
        case.slurm.call("scancel", case.job)
    finally:
        case.slurm.enforce_accounts(False)


@campaign
def test_a_slurm_that_does_not_respond_is_reported_within_seconds(case: Case) -> None:
    """Whether its daemon is dead or stopped; --dry-run works without it."""
    daemon = case.slurm.daemon("slurmctld")
    try:
        for end in (daemon.suspend, daemon.kill):
            end()
            begun = time.monotonic()
            assert refused(case, "--gpus", "1").startswith("Slurm does not respond; try again when `scontrol ping`")
            assert time.monotonic() - begun < 15
            dry = case.submit("--dry-run")
            assert dry.returncode == 0
            assert "#SBATCH --partition=low" in dry.stdout
    finally:
        case.slurm.restart("slurmctld")
        wait_for(case.slurm.responds, "Slurm to respond")


def test_a_run_folder_that_cannot_be_created_is_reported(case: Case) -> None:
    """A file is in its place; and there is a warning for a folder on a disk that the nodes do not share."""
    case.run.path.parent.mkdir()
    (case.run.path.parent / "file").touch()
    blocked = case.submit("--runs-dir", "runs/file/below")
    assert blocked.returncode == 2
    assert "Not a directory" in blocked.stderr
    assert len(blocked.stderr.splitlines()) == 1
    warned = case.submit("--gpus", "1")
    assert "submit.py: warning: runs/run is on a node-local disk; use a --runs-dir" in warned.stderr


@campaign
def test_a_job_whose_second_node_does_not_see_the_run_folder_reports_it_and_ends(case: Case) -> None:
    """The node has a disk of its own there: the job's output names the node and the folder."""
    case.run.path.parent.mkdir()
    case.slurm.restart("slurmd-n2", hide=case.run.path.parent)
    try:
        case.slurm.wait_until_idle()
        done = case.submit("--nodes", "2", "--gpus", "1")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: case.slurm.state(case.job) == "FAILED", "the end of the job", 120)
        assert f"n2 does not see {case.run.source}: choose a --runs-dir that all nodes share" in case.job_output()
        assert not case.events("supervising")
    finally:
        case.slurm.restart("slurmd-n2")
        case.slurm.wait_until_idle()


APPTAINER = """#!/bin/sh
# Does what `apptainer exec OPTIONS IMAGE COMMAND` does as far as this test needs it: hides Slurm's commands.
shift
while [ "$1" = --nv ] || [ "$1" = --bind ]; do [ "$1" = --bind ] && shift; shift; done
shift
PATH=/nothing exec "$@"
"""


@campaign
@pytest.mark.parametrize("how", ["requeue", "usr2", "kill"])
def test_a_job_in_a_container_without_slurms_commands_is_requeued_by_its_batch_script(
    how: str, case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A replacement for apptainer hides scontrol from the job."""
    folder = tmp_path_factory.mktemp("container")
    (folder / "apptainer").write_text(APPTAINER)
    (folder / "apptainer").chmod(0o755)
    inside = ("--container", "vit.sif", "--container-exec", f"{folder}/apptainer exec --nv", "--python", sys.executable)
    case.start("--gpus", "2", "--device", "auto", "--no-health-check", "--gres", "gpu", *inside)
    assert case.slurm.job(case.job)["TresPerNode"] in ("gres:gpu:2", "gres/gpu:2")  # the second since Slurm 23.11
    with case.slowed():
        if how == "requeue":
            case.slurm.call("scontrol", "requeue", case.job)
        elif how == "usr2":
            case.slurm.call("scancel", "--signal", "USR2", case.job)
        else:
            case.ranks()[0].parents()[1].kill()  # the supervisor, above the fork server
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.slurm.job(case.job)["Restarts"] == "1"
    canceled = Case(case.slurm, RunFolder(case.run.path.with_name("canceled")), case.options)
    job = canceled.start("--gpus", "2", *inside)
    with canceled.slowed():
        case.slurm.call("scancel", job)
        wait_for(lambda: canceled.events("stopped"), "the save")
    wait_for(lambda: case.slurm.state(job) == "CANCELLED", "the end of the job")


@campaign
def test_jobs_in_containers_tell_slurm_about_each_other(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A run in several sizes: the batch scripts run the commands that the containers do not have."""
    folder = tmp_path_factory.mktemp("container")
    (folder / "apptainer").write_text(APPTAINER)
    (folder / "apptainer").chmod(0o755)
    inside = ("--container", "vit.sif", "--container-exec", f"{folder}/apptainer exec --nv", "--python", sys.executable)
    done = case.submit("--gpus", "1-2", *inside)
    assert done.returncode == 0, done.stderr
    case.wait_until(case.run.finished, "the end of the run")
    jobs = [each["job"] for each in case.events("submitted")[-1]["candidates"]]
    wait_for(lambda: all(case.slurm.state(job) in ("COMPLETED", "CANCELLED") for job in jobs), "the jobs' end", 120)
    assert case.events("withdrawn")
