"""Runs on this machine that are interrupted by Ctrl-C, or whose processes are killed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.local_runs import ranks_of, run_status, settings, start, steps_done, submit, weights
from tests.helpers.waiting import wait_for
from vit.checkpoint.format import find_checkpoints
from vit.run.folder import RunFolder


def test_ctrl_c_saves_and_the_same_command_resumes(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path
) -> None:
    """The run ends with the bits of an undisturbed run.  A terminal sends Ctrl-C to every process of the command.

    The Slurm variables are those of a job in which the user opened the terminal; it must not be requeued.
    """
    run = RunFolder(tmp_path / "runs" / "demo")
    outer_job = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "3", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}
    command = start(tmp_path, "--gpus", "2", *settings(betons), **outer_job)
    wait_for(lambda: steps_done(run) >= 10, "step 10")
    os.killpg(command.pid, signal.SIGINT)
    printed, _ = command.communicate(timeout=60)
    assert command.returncode == 130, printed
    assert "stopped and saved at step" in printed
    assert printed.count("stopping:") == 1
    assert not ranks_of(run)
    assert json.loads(run_status(tmp_path, "runs/demo", "--json").stdout)["state"] == "stopped"
    again = submit(tmp_path, "--gpus", "2", *settings(betons))
    assert again.returncode == 0, again.stdout + again.stderr
    assert [e["step"] for e in run.events() if e["event"] == "started"][1] >= 10
    assert weights(run) == weights(finished[0])


@pytest.mark.parametrize("seconds", [0.7, 2.0, 3.5])
def test_ctrl_c_in_the_first_seconds_ends_the_command(seconds: float, betons: Path, tmp_path: Path) -> None:
    """While submitit starts, while torch is imported, while the ranks start; and the command says how to go on."""
    command = start(tmp_path, "--gpus", "2", *settings(betons, epochs=5000))
    time.sleep(seconds)
    os.killpg(command.pid, signal.SIGINT)
    printed, _ = command.communicate(timeout=40)
    assert command.returncode == 130, printed
    assert "run the same command" in printed
    assert not ranks_of(RunFolder(tmp_path / "runs" / "demo"))


def test_a_second_ctrl_c_ends_the_command_without_saving(betons: Path, tmp_path: Path) -> None:
    """All ranks end within seconds."""
    run = RunFolder(tmp_path / "runs" / "demo")
    command = start(tmp_path, "--gpus", "2", *settings(betons, epochs=5000))
    wait_for(lambda: steps_done(run) >= 5, "step 5")
    for _ in range(2):
        os.killpg(command.pid, signal.SIGINT)
        time.sleep(0.05)
    printed, _ = command.communicate(timeout=20)
    assert command.returncode == 130, printed
    wait_for(lambda: not ranks_of(run), "the end of the ranks", seconds=10)


def test_a_run_is_saved_and_ends_when_its_command_is_killed(betons: Path, tmp_path: Path) -> None:
    """SIGKILL of submit.py alone: the ranks notice, save and exit.  Until then the folder cannot be used twice."""
    run = RunFolder(tmp_path / "runs" / "demo")
    command = start(tmp_path, "--gpus", "2", *settings(betons, epochs=2000))
    wait_for(lambda: steps_done(run) >= 5, "step 5")
    refused = submit(tmp_path, "--gpus", "2", *settings(betons, epochs=2000))
    assert refused.returncode == 1
    assert "is in use by process" in refused.stderr
    command.kill()
    command.communicate()
    wait_for(lambda: not ranks_of(run), "the end of the ranks", seconds=30)
    stopped = run.last("stopped")
    assert stopped is not None
    assert stopped["step"] == int(find_checkpoints(run.checkpoints)[0].name[5:])


def test_a_killed_rank_is_restarted_in_place(finished: tuple[RunFolder, str], betons: Path, tmp_path: Path) -> None:
    """SIGKILL of one of two ranks: the command continues, and the run ends with the bits of an undisturbed run."""
    run = RunFolder(tmp_path / "runs" / "demo")
    command = start(tmp_path, "--gpus", "2", *settings(betons), "--checkpoint.every_minutes", "0.0001")
    wait_for(lambda: steps_done(run) >= 5, "step 5")
    ranks_of(run)[0].kill()
    printed, _ = command.communicate(timeout=90)
    assert command.returncode == 0, printed
    assert [e["event"] for e in run.events()].count("restarting in place") == 1
    assert weights(run) == weights(finished[0])
