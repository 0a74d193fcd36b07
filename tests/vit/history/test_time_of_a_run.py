"""The time of a real run that is killed and stopped: every second is accounted for."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.local_runs import ranks_of, settings, start, steps_done, submit
from tests.helpers.waiting import wait_for
from vit.history.attempts import read_attempts
from vit.history.time_spent import time_spent
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines


def test_every_second_of_a_run_that_is_killed_and_stopped_is_accounted_for(betons: Path, tmp_path: Path) -> None:
    """A rank is killed, then the command is stopped and started again: three attempts, on two ranks each."""
    options = [*settings(betons, epochs=8), "--nodes", "1", "--gpus", "2", "--name", "run"]
    run = RunFolder(tmp_path / "runs" / "run")
    began = time.time()
    command = start(tmp_path, *options)
    try:
        wait_for(lambda: run.metrics.exists() and steps_done(run) >= 12, "the first steps")
        ranks_of(run)[0].send_signal(signal.SIGKILL)
        wait_for(lambda: [e["event"] for e in run.events()].count("started") == 2, "the restart")
        wait_for(lambda: steps_done(run) >= 12, "the repeated steps")
        command.send_signal(signal.SIGINT)
        command.wait(60)
    finally:
        os.killpg(command.pid, signal.SIGKILL)
    stopped = time.time()
    again = submit(tmp_path, *options)
    assert again.returncode == 0, again.stderr

    attempts = read_attempts(run.events())
    assert [a.ending for a in attempts] == ["failed", "stopped", "finished"]
    assert [a.why for a in attempts][1:] == ["stopped by the user", "finished"]
    assert "ended with SIGKILL" in attempts[0].why
    assert attempts[0].lost_steps >= 12 - (attempts[1].first_step or 0) > 0
    assert attempts[2].first_step == attempts[1].last_step
    spent = time_spent(attempts)
    assert (attempts[2].ended or 0) - attempts[0].began == pytest.approx(spent.total + spent.idle, abs=0.1)
    assert 0 <= attempts[0].began - began < 10
    assert spent.idle > (attempts[2].began - stopped) * 0.9
    assert spent.seconds["lost"] > 0
    assert sum(spent.seconds[name] for name in ("start", "step", "lost")) > 0.5 * spent.on_nodes
    assert spent.goodput is not None and 0 < spent.goodput < 1

    records = read_lines(run.metrics)
    times = [record["time"] for record in records]
    assert times == sorted(times)
    assert all(sum(r["seconds"].values()) < r["time"] - began for r in records)
