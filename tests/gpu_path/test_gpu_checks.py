"""`make gpu` on the null GPU: all its checks run to their end, and say that what a GPU computes is missing."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.on_gpu.jobs import run
from tests.helpers.null_gpu import environment
from tests.helpers.paths import CHECKOUT
from tests.helpers.waiting import wait_for

COMMAND = [sys.executable, "benchmarks/gpu.py"]
COUNTS = struct.pack("3q", 32, 160, 320)  # top-1, top-5, images of an evaluation


def run_checks(folder: Path, tmp_path: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Runs the command on a null GPU; returns its checks by name."""
    variables = os.environ | environment(folder, answers={1: b"\1", 24: COUNTS})
    command = [*COMMAND, *options, "--folder", str(tmp_path / "checks")]
    done = subprocess.run(command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout, done.stderr  # no kernel runs: pixels are wrong
    parts = json.loads(done.stdout.splitlines()[-1])["parts"]
    return {check["name"]: check for checks in parts.values() for check in checks}


def errors(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the checks that could not run to their end say; the null GPU has no cuDNN, which `exact: samples` uses."""
    failed = {name: check["text"] for name, check in checks.items() if check["state"] == "ERROR"}
    return {name: text for name, text in failed.items() if "CUDNN_STATUS_NOT_INITIALIZED" not in text}


def test_without_a_gpu_the_checks_say_so() -> None:
    """Exit code 2, and a sentence."""
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(COMMAND, cwd=CHECKOUT, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU is visible" in done.stderr


def test_what_cannot_be_done_is_refused_before_the_checks(null_gpu_folder: Path, tmp_path: Path) -> None:
    """In one line, not after twenty minutes; and a part of which nothing is checked has not passed."""
    (tmp_path / "file").write_text("[]")
    for options, reason in (
        (["rank"], "unknown part rank; known are truth, speed, trainer, ranks, faults"),
        (["--quick", "ranks"], "unknown part ranks; parts of --quick are truth, speed"),
        (["--out", str(tmp_path / "missing" / "out.json")], "No such file or directory"),
        (["--out", str(tmp_path / "file")], "it is no file of figures"),
        (["--folder", str(tmp_path / "file")], "File exists"),
    ):
        command, variables = [*COMMAND, *options], os.environ | environment(null_gpu_folder)
        done = subprocess.run(command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr.splitlines()[-1], done.stderr


def test_the_quick_checks_run_to_their_end(null_gpu_folder: Path, tmp_path: Path) -> None:
    """They find that pixels are wrong, and measure a recipe."""
    checks = run_checks(null_gpu_folder, tmp_path, "--quick")
    assert checks["each operation gives the cpus bytes"]["state"] == "WRONG"
    assert not errors(checks)
    assert checks["step of vit b16 not compiled"]["figures"]["images_per_step"] == 384


def test_a_check_that_takes_too_long_leaves_no_process_on_the_gpu(tmp_path: Path) -> None:
    """Its ranks would slow down the next checks, or take their memory."""
    program = f"""
import subprocess, sys
rank = subprocess.Popen(["sleep", "100"])
open({str(tmp_path / "rank")!r}, "w").write(str(rank.pid))
rank.wait()
"""
    with pytest.raises(subprocess.TimeoutExpired):
        run("-c", program, seconds=5)
    rank = int((tmp_path / "rank").read_text())
    wait_for(lambda: has_ended(rank), "the end of the rank", seconds=20)


def has_ended(pid: int) -> bool:
    """Whether a process has ended, even if its parent does not know yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.campaign
@pytest.mark.timeout(3000)
def test_all_checks_run_to_their_end(null_gpu_folder: Path, tmp_path: Path) -> None:
    """Truth, speed, ranks and faults: jobs that are killed, suspended, or out of memory included."""
    checks = run_checks(null_gpu_folder, tmp_path, "--no-profiles")
    assert not errors(checks)
    assert len(checks) > 20
