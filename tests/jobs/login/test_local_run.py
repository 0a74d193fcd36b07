"""The command that waits for a run on this machine, whose end would stop the run."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from errno import ELOOP
from pathlib import Path

import pytest
import submitit

from jobs.login import local_run
from tests.helpers.paths import ROOT
from tests.helpers.records import evaluation_record
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder
from vit.run.jsonl import append


@dataclass(frozen=True)
class Job:
    """A job that waits in place of a training until `released` exists."""

    folder: str

    def __call__(self) -> None:
        Path(self.folder, "started").touch()
        wait_for(Path(self.folder, "released").exists, "the test releases the job")


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """A file gives an error when it is read, also for root: a link to itself in its place gives ELOOP.

    It never seems to be missing: both changes are a single rename.
    """
    aside, loop = path.with_suffix(".aside"), path.with_suffix(".loop")
    aside.hardlink_to(path)
    loop.symlink_to(path.name)
    loop.replace(path)
    yield
    aside.replace(path)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> local_run.LocalJob:
    """A real local job, which has started, of a run with a ledger and a learning curve.  Ctrl-C has been pressed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.record("supervising")
    append(run.metrics, evaluation_record(1, top1=0.1))
    submitted = submitit.LocalExecutor(folder=run.jobs).submit(Job(str(tmp_path)))
    wait_for((tmp_path / "started").exists, "the job starts")
    return local_run.LocalJob(run, submitted, [signal.SIGTERM], known=0)


def waiting(job: local_run.LocalJob) -> tuple[threading.Thread, list[int | Exception]]:
    """A thread that waits for the job, and what it returned or raised."""
    result: list[int | Exception] = []

    def wait() -> None:
        try:
            result.append(local_run.wait(job))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, result


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
def test_a_disk_that_cannot_be_read_for_a_while_ends_neither_the_command_nor_the_run(
    name: str, job: local_run.LocalJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither while it shows the progress, nor when the job has ended: it reads again."""
    run, shown = job.run, ""

    def is_shown(text: str) -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return text in shown

    with unreadable(run.path / name) if name == "ledger.jsonl" else nullcontext():
        thread, result = waiting(job)
        wait_for(lambda: is_shown("stopping: saving") or result, "the command tells the job to stop")
    with unreadable(run.path / name):
        thread.join(0.5)  # it looks at the file again
        assert result == []
    append(run.metrics, evaluation_record(2, top1=0.25))
    wait_for(lambda: is_shown("test top-1 25.00%") or result, "the newest record is shown")
    run.record("stopped", step=2)
    with unreadable(run.ledger):
        (tmp_path / "released").touch()
        wait_for(lambda: job.submitted.done() or result, "the job ends")
        thread.join(0.5)
        assert result == []
    thread.join(10)
    assert result == [local_run.INTERRUPTED]
    assert is_shown("stopped and saved at step 2")
    assert "top-1 10.00%" not in shown, "a record of an earlier attempt"


def test_a_ledger_that_remains_unreadable_is_named(
    job: local_run.LocalJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1, and the other runs of a sweep are not affected."""
    monkeypatch.setattr(local_run, "READ_SECONDS", 0.1)
    (tmp_path / "released").touch()
    with unreadable(job.run.ledger):
        assert local_run.wait(job) == 1
    printed = capsys.readouterr()
    assert "the job has ended, but its ledger, which says how, cannot be read" in printed.out
    expected = f"{OSError(ELOOP, os.strerror(ELOOP), str(job.run.ledger))}; to see the state of the run: "
    assert printed.err.startswith(expected)
