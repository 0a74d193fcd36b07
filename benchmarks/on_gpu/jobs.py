"""Whole jobs on the GPUs of this machine: one that is killed and goes on, and `vit.verify`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from benchmarks.on_gpu.checks import ROOT, work_folder
from benchmarks.on_gpu.images import data_settings
from vit.checkpoint.format import find_checkpoints
from vit.run.folder import RunFolder

SMALL = ["--model.width", "192", "--model.heads", "3", "--model.depth", "6", "--model.mlp_dim", "768"]
BATCHES = ["--micro_batch", "64", "--global_batch", "256", "--optim.warmup_epochs", "0.5"]


def run(*command: str, seconds: float, check: bool = True, **environment: str) -> str:
    """Runs `python COMMAND` in the project's folder; returns its output.  Raises RuntimeError with its end."""
    with started(*command, **environment) as process:
        output = process.communicate(timeout=seconds)[0]
    if check and process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … exited with {process.returncode}: {output[-1500:]}")
    return output


@contextmanager
def started(*command: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Starts `python COMMAND` in the project's folder.  If it still runs at the end, it and all its descendants end.

    They would use the GPU during the next checks.
    """
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                _end_tree(process.pid)


def killed_job() -> tuple[str, dict[str, float]]:
    """A job whose rank is killed takes over its compiled graphs and finishes."""
    folder = work_folder()
    run_folder = RunFolder(folder / "runs" / "killed")
    options = ["--epochs", "12", "--optim.ema_decay", "0.99", "--log.eval_every_epochs", "6"]
    command = ["jobs/submit.py", "--config", "configs/vit_b16_deit.yaml", "--name", "killed"]
    command += ["--runs-dir", str(folder / "runs"), "--checkpoint.every_minutes", "0.05", *options]
    command += [*SMALL, *BATCHES, *data_settings(folder), "--nodes", "1", "--gpus", "1", "--cluster", "debug"]
    with started(*command) as process:
        return _kill_its_rank(process, run_folder)


def _end_tree(pid: int) -> None:
    """Kills a process and all its descendants."""
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def _kill_its_rank(process: "subprocess.Popen[str]", run_folder: RunFolder) -> tuple[str, dict[str, float]]:
    deadline = time.monotonic() + 150
    while not any(run_folder.compiled.glob("*/*/*.bin")) or not find_checkpoints(run_folder.checkpoints):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0][-2000:]
        time.sleep(0.1)
    time.sleep(1)
    (rank,) = [
        each for each in psutil.Process(process.pid).children(recursive=True)
        if "vit.train (rank 0)" in " ".join(each.cmdline())
    ]  # fmt: skip
    killed_at = time.time()
    rank.send_signal(signal.SIGKILL)
    output = process.communicate(timeout=170)[0]
    assert process.returncode == 0, output[-2000:]
    starts = [each["time"] for each in run_folder.events() if each["event"] == "started"]
    assert len(starts) == 2, f"the job started {len(starts)} times"
    finished = run_folder.last("finished")
    assert finished is not None
    figures = {
        "again_after_seconds": round(starts[1] - killed_at, 1),
        "compile_seconds": finished["seconds"]["compile"],
    }
    return f"{figures}, top-1 {finished['val_top1']}", figures


def verify() -> str:
    """vit.verify: a run that is killed five times ends with the bits of the undisturbed one."""
    return verify_run("--compile", "false", "--kills", "5", "--steps", "60", *BATCHES)


def verify_run(*options: str) -> str:
    """Runs vit.verify on one rank; returns the end of its output.  Raises AssertionError if the runs differ."""
    fixed = ["--config", "configs/vit_b16_deit.yaml", "--ranks", "1", "--data.repeats", "1", *SMALL]
    output = run("-m", "vit.verify", *fixed, *options, *data_settings(work_folder()), seconds=170, check=False)
    assert "NOT identical" not in output, output[-1500:]
    if "identical after" not in output:
        raise RuntimeError(f"vit.verify did not get to its end: {output[-1500:]}")
    return "; ".join(output.splitlines()[-2:])
