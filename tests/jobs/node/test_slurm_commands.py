"""Commands of a job in a container, which its batch script runs outside."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.node import slurm_commands
from tests.helpers.waiting import wait_for


@pytest.fixture
def batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[bytes]"]:
    """The lines of a batch script, running; this process sees no commands."""
    (tmp_path / "a run" / "slurm").mkdir(parents=True)
    lines = [f'source="{tmp_path}/a run/source"', *slurm_commands.RUN_COMMANDS, "wait"]
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)], env=os.environ | {"SLURM_JOB_ID": "7"}, process_group=0
    )
    monkeypatch.setenv("PATH", "/nothing")
    monkeypatch.setenv(slurm_commands.FOLDER_VARIABLE, str(tmp_path / "a run" / "slurm" / "commands-7"))
    wait_for(Path(os.environ[slurm_commands.FOLDER_VARIABLE]).is_dir, "the folder of commands")
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_commands_run_outside_with_their_output_and_exit_code(batch_script: "subprocess.Popen[bytes]") -> None:
    """Arguments are passed as they are, several threads may ask at once, and no file is left."""
    assert slurm_commands.has_commands()
    words = ["a b", "$HOME", "it's", "*"]
    done = slurm_commands.run("printf", "%s|", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a b|$HOME|it's|*|", "")
    failed = slurm_commands.run("sh", "-c", "echo no >&2; exit 3")
    assert (failed.returncode, failed.stdout, failed.stderr) == (3, "", "no\n")
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(slurm_commands.run("echo", str(i)).stdout.strip()))
        for i in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    assert os.listdir(os.environ[slurm_commands.FOLDER_VARIABLE]) == []


def test_commands_still_run_after_sigterm(batch_script: "subprocess.Popen[bytes]") -> None:
    """Slurm sends it to all processes of a job that is canceled or preempted, the batch script included."""
    os.killpg(batch_script.pid, signal.SIGTERM)
    assert slurm_commands.run("echo", "late").stdout == "late\n"


def test_a_batch_script_that_has_ended_is_not_waited_for_forever(
    batch_script: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command fails, as one to which Slurm's controller does not respond."""
    os.killpg(batch_script.pid, signal.SIGKILL)
    monkeypatch.setattr(slurm_commands, "COMMAND_SECONDS", 0.5)
    done = slurm_commands.run("scontrol", "ping")
    assert done.returncode == 1 and "no response" in done.stderr
    assert os.listdir(os.environ[slurm_commands.FOLDER_VARIABLE]) == []


def test_a_command_that_is_not_installed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As sacct on clusters without accounting."""
    monkeypatch.setenv("PATH", "/nothing")
    monkeypatch.delenv(slurm_commands.FOLDER_VARIABLE, raising=False)
    assert slurm_commands.run("sacct").returncode == 127
    assert not slurm_commands.has_commands()
