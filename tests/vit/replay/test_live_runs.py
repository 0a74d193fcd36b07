"""A replay disturbs a live run in nothing, and leaves what a killed run has left."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import checkpoints, save_each_step, short_config
from tests.helpers.replayed_runs import contents, replay, replayed
from vit.checkpoint.format import step_of
from vit.config.schema import to_yaml
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines


def last_step(run: Path) -> int:
    return max((r["step"] for r in read_lines(RunFolder(run).metrics) if "loss" in r), default=0)


def test_a_live_run_is_replayed_and_then_a_killed_one(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle of saves, then going on, then killed: no byte of its folder changes by a replay.

    Partial saves stay, and the lock is not taken.
    """
    run, config = tmp_path / "live", tmp_path / "live.yaml"
    cfg = save_each_step(replace(short_config(betons), epochs=400))
    config.write_text(to_yaml(replace(cfg, log=replace(cfg.log, eval_every_epochs=100))))
    command = [sys.executable, "-m", "vit.train", "--config", str(config), "--run-dir", str(run)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while last_step(run) < 8 and time.monotonic() < deadline:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGSTOP)
            before, step = contents(run), step_of(checkpoints(run)[0]) + 1
            step = min(step, last_step(run))
            assert replayed(capsys, run, step)["same"]
            assert contents(run) == before
            os.killpg(process.pid, signal.SIGCONT)
            for _ in range(2):  # while checkpoints appear and are removed
                assert replayed(capsys, run, last_step(run))["same"]
            assert process.poll() is None, "the run ended before it was replayed"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    (run / "checkpoints" / "step-99999999.tmp").mkdir()
    before = contents(run) | {path.name: "" for path in (run / "checkpoints").iterdir()}
    assert replay(run, "--step", str(last_step(run))) == 0
    assert "the same bits" in capsys.readouterr().out
    assert contents(run) | {path.name: "" for path in (run / "checkpoints").iterdir()} == before
