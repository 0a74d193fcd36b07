"""What a job learns from Slurm about the other jobs of its run: from answers as Slurm 22.05 gives them."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.node import candidacy, other_jobs, signals, waiting_jobs
from jobs.node.candidacy import Ownership
from jobs.node.candidates import Candidate
from jobs.node.job_spec import JobSpec
from jobs.node.ownership import Claim, Owners
from jobs.node.waiting_jobs import WaitingJobs
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands: each prints what the file of its name has."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("scontrol", "sacct"):
        (tmp_path / name).write_text(f'#!/bin/sh\ncat "{tmp_path}/{name}.out"\n')
        (tmp_path / name).chmod(0o755)
        (tmp_path / f"{name}.out").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "over"),
    [
        ("Job 12_0 not found", True),
        ("", None),
        ("JobId=12 JobState=RUNNING Restarts=1", False),
        ("JobId=12 JobState=RUNNING Restarts=2", True),
        ("JobId=12 JobState=SUSPENDED Restarts=1", False),
        ("JobId=12 JobState=COMPLETING Restarts=2", False),
        ("JobId=12 JobState=PENDING Restarts=2", True),
    ],
)
def test_a_start_is_over_only_if_slurm_says_so(text: str, over: bool | None, answers: Path) -> None:
    """Also of a task that Slurm forgot while it still knows others of its array: nobody would train for ever."""
    (answers / "scontrol.out").write_text(text)
    assert other_jobs.start_is_over("12_0.1") is over


def test_a_job_that_waited_again_when_it_was_canceled_only_takes_away_its_size(answers: Path) -> None:
    """It had been requeued since it trained; the accounting counts only for one that did not release the run."""
    (answers / "scontrol.out").write_text("JobId=12 JobState=CANCELLED Restarts=1")
    assert other_jobs.was_canceled("12.1", released=False)
    assert not other_jobs.was_canceled("12.0", released=True)
    (answers / "scontrol.out").write_text("")
    (answers / "sacct.out").write_text("CANCELLED by 0\n")
    assert other_jobs.was_canceled("12.1", released=False)
    assert not other_jobs.was_canceled("12.1", released=True)


def test_a_job_is_deferred_before_slurm_gives_that_as_the_reason() -> None:
    """The reason may be that of the last look of the scheduler: the job would wait for minutes, and nobody train."""
    later, earlier = (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds)) for seconds in (900, -900)
    )
    assert other_jobs.is_deferred({"Reason": "Resources", "EligibleTime": later})
    assert not other_jobs.is_deferred({"Reason": "Resources", "EligibleTime": earlier, "StartTime": later})
    assert not other_jobs.is_deferred({"Reason": "JobHeldUser", "EligibleTime": "Unknown"})
    assert other_jobs.is_deferred({"Reason": "BeginTime", "EligibleTime": "Unknown"})


def test_the_owner_goes_on_to_watch_after_an_unexpected_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged record of the ledger must not leave the jobs that wait without an answer."""
    looks, second = [], threading.Event()

    def requests(_: Any) -> dict[Path, Any]:
        looks.append(1)
        if len(looks) == 1:
            raise ValueError("a damaged record")
        second.set()
        return {}

    monkeypatch.setattr(waiting_jobs, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(signals, "_received", [])
    ownership: Any = SimpleNamespace(owners=SimpleNamespace(requests=requests), claim=None, others=list[Candidate]())
    watch = WaitingJobs(JobSpec(str(tmp_path), 1, 1), RunFolder(tmp_path), ownership)
    watch.start()
    wait_for(second.is_set, "the next look", 10)
    watch._closed.set()


@pytest.mark.parametrize("canceled", [True, False])
def test_a_job_that_is_canceled_before_it_has_a_supervisor_cancels_the_others_once(
    canceled: bool, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm says whether it was canceled; a thread of the supervisor may ask the same."""
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(name, value)
    (answers / "scontrol.out").write_text(f"JobId=12 JobState=COMPLETING Restarts={0 if canceled else 1}")
    (answers / "scancel").write_text(f'#!/bin/sh\necho "$@" >> "{answers}/canceled"\n')
    (answers / "scancel").chmod(0o755)
    mine, other = Candidate("12", 1, 1), Candidate("13", 1, 2)
    owned = Ownership(Owners(answers), Claim(mine, "12.0", "n1", 0.0, 1), [other])
    assert owned.end_if_canceled(RunFolder(answers)) is owned.end_if_canceled(RunFolder(answers)) is canceled
    assert [e["event"] for e in RunFolder(answers).events()] == (["canceled", "withdrawn"] if canceled else [])
    assert not canceled or (answers / "canceled").read_text() == "13\n"


def test_a_process_exits_only_after_another_thread_has_let_the_other_jobs_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a lost node, whose ranks need no time to save, leaves the other jobs of the run deferred for minutes."""
    began, told = threading.Event(), list[str]()

    def slow(_: Any) -> dict[str, dict[str, str]]:
        began.set()
        time.sleep(0.5)
        told.append("told")
        return {}

    monkeypatch.setattr(other_jobs, "pending_jobs", slow)
    monkeypatch.setattr(candidacy, "_current", [])
    mine, other = Candidate("12", 1, 1), Candidate("13", 1, 2)
    owners = Owners(tmp_path)
    claim = owners.claim(Claim(mine, "12.0", "n1", 0.0, 1), 1)
    assert claim is not None
    ownership = Ownership(owners, claim, [other], canceled=False)
    candidacy._current.append(ownership)
    watch = WaitingJobs(JobSpec(str(tmp_path), 1, 1), RunFolder(tmp_path), ownership)
    watch.start()
    thread = threading.Thread(target=watch.leave)
    thread.start()
    assert began.wait(10)
    candidacy.release()
    assert told == ["told"]
    thread.join()
