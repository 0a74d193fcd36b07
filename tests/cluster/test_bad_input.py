"""What a real Slurm would refuse, or let wait for ever, is said in one line before anything is submitted."""

import re
import sys
import time

import pytest

from tests.cluster.test_cluster import Case, campaign, case  # noqa: F401  (a fixture)
from tests.helpers.slurm_cluster import wait_for
from vit.run.folder import RunFolder

REFUSED = [
    (("--partition", "gpuu"), "--partition gpuu: there is no such partition; there are hasty, high, low, short"),
    (
        ("--device", "auto", "--gpus", "8", "--micro_batch", "8"),
        "--gpus 8: --nodes takes several; a node of partition low has at most 4",
    ),
    (("--partition", "short"), "--time 1:00:00: a job of partition short may take 30 minutes at most (--time 30)"),
    (("--nodes", "4"), "--nodes 4: partition low has 2"),
    (("--cpus-per-gpu", "17"), "--cpus-per-gpu 17: that is 17 cores; a node of partition low has at most 16"),
    (("--mem", "1T"), "--mem 1T: in MB, a node of partition low has at most 20000"),
    (("--reservation", "monday"), "--reservation monday: Slurm says Requested reservation is invalid"),
    (("--constraint", "h100"), "--constraint h100: Slurm says Invalid feature specification"),
    (("--sbatch", "no-such-option=1"), "unrecognized option"),
]


def refused(case: Case, *options: str) -> str:  # noqa: F811
    """The one line that the command says, after which nothing is there that a next try would stumble over."""
    done = case.submit(*options)
    assert done.returncode in {1, 2}, done.stdout + done.stderr
    assert case.run.last("submitted") is None
    assert not case.run.config.exists()
    (line,) = done.stderr.splitlines()
    return line.removeprefix("submit.py: ")


def test_what_slurm_would_refuse_is_said_in_one_line(case: Case) -> None:  # noqa: F811
    """With the flag, what was asked for, and what there is."""
    for options, message in REFUSED:
        assert message in refused(case, *options), options
    assert case.slurm.call("squeue", "--noheader") == ""


@campaign
def test_an_account_without_rights_is_answered_with_those_that_there_are(case: Case) -> None:  # noqa: F811
    """Where Slurm enforces them; and a quality of service likewise."""
    case.slurm.enforce_accounts(True)
    try:
        said = refused(case, "--account", "nosuch")
        assert re.match(r"--account nosuch: Slurm says Invalid account .*; yours: .*vision", said)
        assert re.match(r"--qos nosuch: Slurm says Invalid qos .*; yours: normal", refused(case, "--qos", "nosuch"))
        done = case.submit("--account", "vision")
        assert done.returncode == 0, done.stderr
        case.slurm.call("scancel", case.job)
    finally:
        case.slurm.enforce_accounts(False)


@campaign
def test_a_slurm_that_does_not_answer_is_said_soon(case: Case) -> None:  # noqa: F811
    """Whether its daemon is gone, or stands still: in about ten seconds; --dry-run does without it."""
    daemon = case.slurm.daemon("slurmctld")
    try:
        for end in (daemon.suspend, daemon.kill):
            end()
            begun = time.monotonic()
            assert refused(case, "--gpus", "1").startswith("Slurm does not answer; `scontrol ping` says when")
            assert time.monotonic() - begun < 15
            dry = case.submit("--dry-run")
            assert dry.returncode == 0
            assert "#SBATCH --partition=low" in dry.stdout
    finally:
        case.slurm.restart("slurmctld")
        wait_for(lambda: "UP" in case.slurm.call("scontrol", "ping", check=False), "Slurm's answer")


def test_a_run_folder_that_cannot_be_written_is_said(case: Case) -> None:  # noqa: F811
    """A file in its way, as root may write everywhere; and one that nodes do not share is warned of."""
    case.run.path.parent.mkdir()
    (case.run.path.parent / "file").touch()
    blocked = case.submit("--runs-dir", "runs/file/below")
    assert blocked.returncode == 2
    assert "Not a directory" in blocked.stderr
    assert len(blocked.stderr.splitlines()) == 1
    warned = case.submit("--gpus", "1")
    assert (
        "submit.py: warning: runs/run is on a disk that each node has for itself: choose a --runs-dir" in warned.stderr
    )


@campaign
def test_a_run_folder_that_one_node_does_not_see_is_said_by_the_job(case: Case) -> None:  # noqa: F811
    """The second node has a disk of its own there: the job ends at once, and its log names node and folder."""
    case.run.path.parent.mkdir()
    case.slurm.restart("slurmd-n2", blind_to=case.run.path.parent)
    try:
        wait_for(case.slurm.nodes_idle, "the nodes", 60)
        done = case.submit("--nodes", "2", "--gpus", "1")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: case.slurm.state(case.job) == "FAILED", "the end of the job", 120)
        said = "".join(file.read_text() for file in case.run.jobs.glob("*.out"))
        assert f"n2 does not see {case.run.source}: choose a --runs-dir that all nodes share" in said
        assert not case.happened("supervising")
    finally:
        case.slurm.restart("slurmd-n2")
        wait_for(case.slurm.nodes_idle, "the nodes", 60)


APPTAINER = """#!/bin/sh
# What `apptainer exec OPTIONS IMAGE COMMAND` does, for a test of what surrounds it: Slurm's commands are not inside.
shift
while [ "$1" = --nv ] || [ "$1" = --bind ]; do [ "$1" = --bind ] && shift; shift; done
shift
PATH=/nothing exec "$@"
"""


@campaign
@pytest.mark.parametrize("how", ["requeue", "usr2", "kill"])
def test_a_job_in_a_container_without_slurms_commands_is_requeued_from_outside(
    how: str,
    case: Case,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A stand-in for apptainer hides scontrol: the batch script asks for what the job cannot ask for."""
    folder = tmp_path_factory.mktemp("container")
    (folder / "apptainer").write_text(APPTAINER)
    (folder / "apptainer").chmod(0o755)
    inside = ("--container", "vit.sif", "--container-exec", f"{folder}/apptainer exec --nv", "--python", sys.executable)
    case.start("--gpus", "2", "--device", "auto", "--no-health-check", "--gres", "gpu", *inside)
    assert case.slurm.job(case.job)["TresPerNode"] == "gres:gpu:2"
    with case.braked():
        if how == "requeue":
            case.slurm.call("scontrol", "requeue", case.job)
        elif how == "usr2":
            case.slurm.call("scancel", "--signal", "USR2", case.job)
        else:
            case.ranks()[0].parents()[1].kill()  # above what the ranks are forks of
        case.until(lambda: case.happened("stopped"), "the save")
    case.finish()
    assert case.starts() == [0, case.stopped_at()]
    assert case.slurm.job(case.job)["Restarts"] == "1"
    canceled = Case(case.slurm, RunFolder(case.run.path.with_name("canceled")), case.options)
    job = canceled.start("--gpus", "2", *inside)
    with canceled.braked():
        case.slurm.call("scancel", job)
        wait_for(lambda: canceled.happened("stopped"), "the save")
    wait_for(lambda: case.slurm.state(job) == "CANCELLED", "the end of the job")
