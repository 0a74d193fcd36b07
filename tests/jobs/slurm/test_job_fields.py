"""`scontrol show job` of each recorded version: the same fields, whatever the user's own words are."""

import os
import subprocess
from pathlib import Path

import pytest

from jobs.node import other_jobs, slurm_job
from jobs.node.slurm_job import SETUP, TEARDOWN
from jobs.slurm import scontrol
from tests.jobs.slurm.recording import VERSIONS, read

every_version = pytest.mark.parametrize("version", VERSIONS)
ODD_NAME = "x JobState=FAILED Restarts=7 a|b"  # of some of the jobs; they also have such a comment
# State and number of restarts of each recorded job.
STATES = {
    "pending.held": ("PENDING", "0"),
    "pending.deferred": ("PENDING", "0"),
    "pending.busy": ("PENDING", "0"),
    "running": ("RUNNING", "0"),
    "suspended": ("SUSPENDED", "0"),
    "stopped": ("STOPPED", "0"),
    "completed": ("COMPLETED", "0"),
    "array.running": ("RUNNING", "0"),
    "array.pending": ("PENDING", "0"),
    "array.requeued": ("PENDING", "1"),
    "ended.failed": ("FAILED", "0"),
    "ended.done.requeued": ("PENDING", "1"),
    "canceled.completing": ("COMPLETING", "0"),
    "canceled": ("CANCELLED", "0"),
    "requeued.completing": ("COMPLETING", "1"),
    "requeued": ("PENDING", "1"),
    "timeout.completing": ("COMPLETING", "0"),
    "timeout": ("TIMEOUT", "0"),
    "preempted.grace": ("RUNNING", "0"),
    "preempted.completing": ("COMPLETING", "1"),
    "preempted": ("PENDING", "1"),
    "node_failed": ("PENDING", "1"),
}


@every_version
def test_a_job_has_the_same_state_in_each_version(version: str) -> None:
    """Also if its name, its comment or its command line looks like fields."""
    recorded = read(version)
    facts = {name: scontrol.facts_of(recorded[name].stdout) for name in STATES}
    assert {name: (each["JobState"], each["Restarts"]) for name, each in facts.items()} == STATES
    for name in ("running", "pending.held", "array.running"):
        assert "Restarts=9" in recorded["running"].stdout
        assert facts[name]["JobName"] == ODD_NAME
    assert facts["pending.held"]["Reason"] == "JobHeldUser"
    assert facts["timeout.completing"]["Reason"] == facts["timeout"]["Reason"] == "TimeLimit"


@every_version
def test_the_fields_that_a_requeue_reads_are_there_in_each_version(version: str) -> None:
    """Excluded nodes, number of nodes, partition, when it may start, whether it is being preempted."""
    recorded = read(version)
    facts = {name: scontrol.facts_of(recorded[name].stdout) for name in STATES}
    assert scontrol.excluded_nodes(facts["running"]) == ["n2"]
    assert scontrol.excluded_nodes(facts["preempted"]) == []
    assert facts["running"]["BatchHost"] == facts["running"]["NodeList"] == "n1"
    assert facts["running"]["Partition"] == "low"
    assert [scontrol.gpus_per_node(facts[name]["TresPerNode"]) for name in ("running", "pending.busy")] == [2, 4]
    assert {int(facts[name]["NumNodes"].partition("-")[0]) for name in ("running", "requeued", "pending.held")} == {1}
    assert {int(facts[name]["NumNodes"].partition("-")[0]) for name in ("pending.busy", "preempted")} == {2}
    assert scontrol.eligible_time(facts["pending.deferred"]) is not None
    assert scontrol.eligible_time(facts["pending.held"]) is None
    assert facts["running"]["PreemptTime"] == "None" != facts["preempted.grace"]["PreemptTime"]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scontrol that prints what the files `out` and `err` have, and writes its requeues to a file."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = f'[ "$1" = requeue ] && echo "$2" >> {tmp_path}/requeued\ncat {tmp_path}/out\ncat {tmp_path}/err >&2\n'
    for name in ("scontrol", "sacct"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def answer(folder: Path, version: str, name: str, words: str = "") -> str:
    """Makes scontrol print this recording, with other words in the job's name and comment; returns the job's id."""
    output = read(version)[name]
    shown = output.stdout
    if words:
        shown = shown.replace("JobName=job script.sh", f"JobName={words}").replace(
            "WorkDir=", f"Comment={words} WorkDir="
        )
        assert shown.count(words) == 2
    (folder / "out").write_text(shown)
    (folder / "err").write_text(output.stderr)
    return output.command.split()[-1]


@every_version
def test_a_start_of_a_job_is_over_for_the_same_reasons_in_each_version(version: str, answers: Path) -> None:
    """What a job asks before it takes a run over, or gives up waiting for the owner."""
    over = {
        "running.0": False, "running.1": True, "suspended.0": False, "stopped.0": False, "canceled.completing.0": False,
        "requeued.completing.0": False, "requeued.0": True, "canceled.0": True, "timeout.0": True, "completed.0": True,
        "preempted.grace.0": False, "preempted.completing.0": False, "preempted.0": True, "node_failed.0": True,
        "array.running.0": False, "array.requeued.0": True, "array.absent.0": True, "unknown.0": True,
        "down.job.0": None,
    }  # fmt: skip
    found = {}
    for start in over:
        name, _, restarts = start.rpartition(".")
        found[start] = other_jobs.start_is_over(f"{answer(answers, version, name)}.{restarts}")
    assert found == over


@every_version
def test_only_a_canceled_job_was_canceled_in_each_version(version: str, answers: Path) -> None:
    """By what scontrol says while Slurm knows the job, and by the accounting later."""
    for name, canceled in {"canceled": True, "requeued": False, "timeout": False, "preempted": False}.items():
        assert other_jobs.was_canceled(f"{answer(answers, version, name)}.0", released=False) is canceled, name
    for name, canceled in {"canceled": True, "requeued": False, "ended.done": False, "ended.failed": False}.items():
        answer(answers, version, f"{name}.accounting")
        assert other_jobs.was_canceled("7.0", released=False) is canceled, name


@every_version
def test_a_job_that_is_being_canceled_is_told_from_one_that_is_ended_otherwise(
    version: str, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm shows all of them as COMPLETING; Slurm 22.05 does not tell a job when it ends."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    for name, canceled in {
        "canceled.completing": True, "canceled": True, "running": False, "requeued.completing": False,
        "timeout.completing": False, "preempted.grace": False, "preempted.completing": False,
    }.items():  # fmt: skip
        monkeypatch.setenv("SLURM_JOB_ID", answer(answers, version, name))
        assert slurm_job.is_being_canceled() is canceled, name


@every_version
def test_the_batch_script_requeues_only_a_job_that_runs_in_each_version(version: str, answers: Path) -> None:
    """After a supervisor that was killed; not one that Slurm has ended, and not a later start, whatever its name is."""
    for name, start, requeued in [
        ("running", "0", True), ("running", "1", False), ("array.running", "0", True), ("stopped", "0", True),
        ("canceled.completing", "0", False), ("requeued.completing", "0", False), ("preempted.grace", "0", True),
        ("preempted.completing", "0", False), ("completed", "0", False),
    ]:  # fmt: skip
        (answers / "requeued").unlink(missing_ok=True)
        job = answer(
            answers, version, name, "" if requeued or start != "0" else f"y JobState=RUNNING Restarts={start} "
        )
        array, _, task = job.partition("_")
        variables = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": start}
        variables |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task} if task else {}
        script = "\n".join([*SETUP, "(exit 137)", *TEARDOWN])
        subprocess.run(["bash", "-c", script], env=os.environ | variables, capture_output=True, timeout=20, check=False)
        asked = (answers / "requeued").read_text() if (answers / "requeued").exists() else ""
        assert asked == (f"{job}\n" if requeued else ""), f"{name}, start {start}"


def test_lines_that_a_wrapper_of_the_site_prints_are_not_read_as_fields() -> None:
    """Before the job and after it; alone they are no answer."""
    before, after = "*** Welcome: JobState=FAILED partition=low ***\n3 idle\n", "\nGoodbye! Restarts=7\n"
    job = "JobId=3 JobName=run UserId=ann(7) GroupId=ann(7) JobState=RUNNING Partition=gpu"
    assert scontrol.facts_of(before + job + after)["JobState"] == "RUNNING"
    assert scontrol.facts_of(before + after) == {}
