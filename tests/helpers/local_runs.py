"""Runs the commands in jobs/ on this machine as a user does: real processes, real signals."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.helpers.paths import ROOT
from vit.checkpoint.format import find_checkpoints
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(ROOT / "configs" / "demo.yaml")]
STATUS = [sys.executable, str(ROOT / "jobs" / "status.py")]


def settings(betons: Path, epochs: int = 6) -> list[str]:
    """Options that shrink the demo to a model with one block and 8 steps per epoch."""
    data = ["--data.train", str(betons / "train.beton"), "--data.val", str(betons / "val.beton")]
    small = ["--epochs", str(epochs), "--global_batch", "64", "--micro_batch", "16", "--log.every_steps", "1"]
    return [*data, *small, "--model.depth", "1", "--optim.warmup_epochs", "1"]


def submit(cwd: Path, *options: str, cluster: str = "local") -> "subprocess.CompletedProcess[str]":
    """Runs submit.py until it ends."""
    return subprocess.run(
        [*SUBMIT, "--cluster", cluster, *options], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def start(cwd: Path, *options: str, **environment: str) -> "subprocess.Popen[str]":
    """Starts submit.py in its own process group, as a shell does."""
    return subprocess.Popen(
        [*SUBMIT, "--cluster", "local", *options], cwd=cwd, env=os.environ | environment, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def run_status(cwd: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Runs status.py, whose output is as wide as that of `| cat`: readline exports COLUMNS behind Python's back."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return subprocess.run(
        [*STATUS, *options], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def steps_done(run: RunFolder) -> int:
    """The newest step in the learning curve."""
    records = read_lines(run.metrics)
    return int(records[-1]["step"]) if records else 0


def weights(run: RunFolder) -> bytes:
    """The contents of the newest checkpoint."""
    return b"".join(part.read_bytes() for part in sorted(find_checkpoints(run.checkpoints)[0].glob("part-*.bin")))


def ranks_of(run: RunFolder) -> list[psutil.Process]:
    """The training processes of a run, whatever their parents are; zombies do not count."""
    out = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "vit.train" in command and str(run.path) in command and process.status() != psutil.STATUS_ZOMBIE:
            out.append(process)
    return out
