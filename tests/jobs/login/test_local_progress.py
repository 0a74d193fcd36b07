"""A command that runs a run on this machine shows what its ranks do, which have no terminal."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobs.login.local_progress import LocalProgress
from tests.helpers.local_runs import SUBMIT, ranks_of, settings, steps_done
from tests.helpers.waiting import wait_for
from vit.run.activity import activity_file
from vit.run.folder import RunFolder


def test_a_run_in_the_foreground_shows_its_progress_and_its_restarts(betons: Path, tmp_path: Path) -> None:
    """With `--cluster debug`, as without it.  At its end: the time of all attempts, and the goodput."""
    options = [*settings(betons, epochs=8), "--nodes", "1", "--gpus", "2", "--name", "run", "--cluster", "debug"]
    run = RunFolder(tmp_path / "runs" / "run")
    command = subprocess.Popen(
        [*SUBMIT, *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: run.metrics.exists() and steps_done(run) >= 9, "the first steps")
        ranks_of(run)[0].send_signal(signal.SIGKILL)
        out, _ = command.communicate(timeout=60)
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
    assert command.returncode == 0
    step = [event["step"] for event in run.events() if event["event"] == "started"][1]
    lines = [
        r"epoch \d.*  step \d.*  loss .*",
        r"rank 0 on \S+: ended with SIGKILL; restarting in place",
        rf"resuming at step {step} \(epoch {step / 8:.1f}\), attempt 2; \d+ steps? repeated"
        if step
        else r"starting again at step 0, attempt 2; \d+ steps? repeated",
        r"epoch 8.00/8  step 64/64  test top-1 .*",
        r"finished in \d+ s, in 2 attempts \(the last one took \d+ s\)",
        r"  time            goodput [\d.]+%: .*",
    ]
    found = [re.search(f"^{line}$", out, re.MULTILINE) for line in lines]
    assert all(found), out
    assert sorted(match.start() for match in found if match) == [match.start() for match in found if match], out


def test_what_the_ranks_do_without_steps_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the file in which rank 0 tells it, unless an earlier attempt did."""
    run = RunFolder(tmp_path)
    told = {"what": "compiling", "since": time.time() - 20, "done": 0, "total": 0}
    activity_file(run.path).write_text(json.dumps(told | {"time": time.time() - 10}))
    progress = LocalProgress(run, known=0)
    progress.poll()
    assert capsys.readouterr().out == ""
    activity_file(run.path).write_text(json.dumps(told | {"time": time.time() + 1}))
    for _ in range(3):
        progress.poll()
    assert capsys.readouterr().out == "compiling: 20 s\n"
