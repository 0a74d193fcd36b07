"""Several commands for the same run at the same time: one trains it, the others are refused and change nothing."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jobs.node import submitter_lock
from tests.helpers.local_runs import SUBMIT, ranks_of, settings, start, steps_done, submit
from tests.helpers.waiting import wait_for
from vit.run.folder import InUseError, RunFolder
from vit.run.jsonl import read_lines

SHORT = ("--epochs", "2", "--optim.warmup_epochs", "0")


def popen(cwd: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SUBMIT, "--cluster", "local", *options], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def training(cwd: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that trains during the body, and is then stopped by Ctrl-C."""
    command = start(cwd, *options)
    try:
        yield command
    finally:
        os.killpg(command.pid, signal.SIGINT)
        command.communicate(timeout=60)
    assert command.returncode == 130


def test_of_several_local_commands_at_the_same_time_one_trains(betons: Path, tmp_path: Path) -> None:
    """The others end with exit code 1 and the name of the owner, long before the ranks of the first one run."""
    begun = time.time()
    commands = [popen(tmp_path, *settings(betons), *SHORT) for _ in range(3)]
    ended = {command.pid: command.communicate(timeout=120) for command in commands}
    codes = [command.returncode for command in commands]
    assert sorted(codes) == [0, 1, 1], ended
    winner = next(command.pid for command in commands if command.returncode == 0)
    for command in commands:
        if command.pid != winner:
            (line,) = ended[command.pid][1].splitlines()
            assert re.search(rf"runs/demo is in use by process {winner} on ", line)
    run = RunFolder(tmp_path / "runs" / "demo")
    assert [event["event"] for event in run.events() if event["event"] != "checkpoint"] == [
        "estimated", "supervising", "started", "finished"
    ]  # fmt: skip
    assert run.events()[0]["time"] > begun
    assert [record["step"] for record in read_lines(run.metrics) if "loss" in record] == list(range(1, 17))


def test_a_command_is_not_refused_because_of_another_one_that_is(tmp_path: Path) -> None:
    """A command holds the run folder for a moment until it is refused; the one after it waits for that."""
    run = RunFolder(tmp_path)
    with ExitStack() as refused:
        refused.enter_context(run.owned())
        threading.Timer(0.5, refused.close).start()
        with submitter_lock.owned(run), submitter_lock.submitting(run):
            assert (run.path / submitter_lock.NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_second_command_is_refused_at_every_time_of_the_first_one(betons: Path, tmp_path: Path) -> None:
    """While it imports, trains, and restarts its ranks; neither the ledger, the config nor the source change."""
    run = RunFolder(tmp_path / "runs" / "demo")
    stages = {
        "the submission": lambda: run.config.exists() and (run.path / submitter_lock.NAME).read_text(),
        "the first step": lambda: steps_done(run) >= 1,
        "a restart in place": lambda: run.last("restarting in place"),
    }
    with training(tmp_path, *settings(betons, epochs=2000)):
        for stage, reached in stages.items():
            if stage == "a restart in place":
                ranks_of(run)[0].kill()
            wait_for(reached, stage)
            before = run.config.read_bytes(), run.config.stat().st_mtime_ns, run.source.stat().st_ino
            refused = submit(tmp_path, *settings(betons, epochs=2000))
            assert refused.returncode == 1, stage
            assert re.search(r"runs/demo is in use by process \d+ on", refused.stderr), stage
            assert before == (run.config.read_bytes(), run.config.stat().st_mtime_ns, run.source.stat().st_ino)
    events = [event["event"] for event in run.events()]
    assert "gave up" not in events
    assert events.count("supervising") == 1


def test_a_sweep_on_this_machine_is_refused_while_another_command_runs_it(betons: Path, tmp_path: Path) -> None:
    """Each of its runs belongs to the first command until its end, also the ones that have not begun."""
    sweep = (*settings(betons, epochs=2000), "--sweep", "seed=0,1")
    runs = [RunFolder(tmp_path / "runs" / "demo-sweep" / f"seed={seed}") for seed in (0, 1)]
    with training(tmp_path, *sweep):
        wait_for(lambda: steps_done(runs[0]) >= 1, "the first step")
        for options in (sweep, (*settings(betons, epochs=2000), "--sweep", "seed=1")):
            refused = submit(tmp_path, *options)
            assert refused.returncode == 1
            assert re.search(r"is in use by process \d+ on", refused.stderr)
        assert not runs[1].config.exists()


def test_a_supervisor_whose_command_was_killed_does_not_join_the_next_command(tmp_path: Path) -> None:
    """It may still be importing then; and as long as it runs, no other command gets the lock."""
    run = RunFolder(tmp_path)
    with submitter_lock.submitting(run):
        assert submitter_lock.join(run, os.getpid())
        assert not submitter_lock.join(run, os.getpid() + 1)
    with pytest.raises(InUseError, match=f"is in use by process {os.getpid()} on "), submitter_lock.submitting(run):
        pass
    while submitter_lock._joined:
        submitter_lock._joined.pop().close()
    with submitter_lock.submitting(run):
        pass


def test_a_command_that_is_killed_during_the_imports_leaves_the_run_to_the_next_one(
    betons: Path, tmp_path: Path
) -> None:
    """Its supervisor ends without a trace in the ledger that the next command would trip over."""
    run = RunFolder(tmp_path / "runs" / "demo")
    first = start(tmp_path, *settings(betons), *SHORT)
    wait_for(lambda: list(run.jobs.glob("*_submitted.pkl")), "the start of the job")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    done = submit(tmp_path, *settings(betons), *SHORT)
    while done.returncode == 1 and "is in use by" in done.stderr:
        done = submit(tmp_path, *settings(betons), *SHORT)
    assert done.returncode == 0, done.stderr
    assert run.last("gave up", "failed") is None


def test_a_job_that_cannot_be_started_here_leaves_everything_as_it_was(betons: Path, tmp_path: Path) -> None:
    """Its folder for submitit's files cannot be created."""
    run = RunFolder(tmp_path / "runs" / "demo")
    run.path.mkdir(parents=True)
    run.jobs.write_text("a file")
    failed = submit(tmp_path, *settings(betons), *SHORT)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert {path.name for path in run.path.iterdir()} == {"slurm", "owner", "submitter"}
