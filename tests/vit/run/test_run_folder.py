"""A run folder has one owner at a time."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import CHECKOUT
from vit.config.schema import Config, to_yaml
from vit.run.folder import JOB_VARIABLE, InUseError, RunFolder
from vit.run.heartbeat import HEARTBEAT_VARIABLE, HeartbeatSlots

OWN = """
import sys, time
from pathlib import Path
from vit.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).owned():
    print("owned", flush=True)
    time.sleep(60)
"""


TRAIN = """
import sys
from vit import train
train.OWNER_WAIT_SECONDS = 0.5
train.main(sys.argv[1:])
"""


def start_owner(run: RunFolder, **environment: str) -> "subprocess.Popen[str]":
    """Starts another process that owns the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWN, str(run.path)],
        cwd=CHECKOUT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    return process


def test_a_run_folder_has_one_owner_until_that_process_ends(tmp_path: Path) -> None:
    """A second process gets an error that names the first one, until that one is killed, without any cleanup."""
    run = RunFolder(tmp_path / "runs" / "new-run")
    with start_owner(run, **{JOB_VARIABLE: "job 4711"}) as process:
        name = rf"new-run is in use by process {process.pid} on {socket.gethostname()}, job 4711$"
        for _ in range(2):  # a failed attempt does not change the name
            with pytest.raises(InUseError, match=name), run.owned():
                pytest.fail("two owners")
        process.kill()
    with run.owned():
        assert f"process {os.getpid()} on" in (run.path / "owner").read_text()
        assert "4711" not in (run.path / "owner").read_text()
    with run.owned():
        pass  # it is free again


def test_another_process_fails_while_this_one_owns_the_run_folder(run: RunFolder) -> None:
    """The last line of its output is the reason."""
    with run.owned():
        other = subprocess.run(
            [sys.executable, "-c", OWN, str(run.path)], cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
    assert other.returncode == 1
    assert re.search(rf"InUseError: .*my-run is in use by process {os.getpid()} on ", other.stderr.splitlines()[-1])


def test_a_rank_of_a_job_exits_with_a_retry_code_if_its_run_folder_is_in_use(run: RunFolder) -> None:
    """A job can be retried: an earlier start of it may still be running.  Without a job, the user has to act."""
    run.config.write_text(to_yaml(Config(device="cpu")))
    slots = HeartbeatSlots(1)  # of the supervisor of a run on this machine
    jobs = ({JOB_VARIABLE: "Slurm job 4711"}, {HEARTBEAT_VARIABLE: slots.name})
    run.logs.mkdir()
    for environment, code in (*((job, os.EX_TEMPFAIL) for job in jobs), ({}, 2)):
        with run.owned():
            command = [sys.executable, "-c", TRAIN, "--config", str(run.config), "--run-dir", str(run.path)]
            other = subprocess.run(
                command, cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True, check=False
            )
        assert other.returncode == code
        message = f"vit.train: {run.path} is in use by process {os.getpid()} on {socket.gethostname()}"
        assert other.stderr.splitlines()[-1] == message
