"""A small training run on a Slurm cluster on this machine, for recovery.py: submits it and reads its progress."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import read_lines

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "demo.yaml"
SMALL = (
    *("--device", "cpu", "--global_batch", "64", "--micro_batch", "32", "--log.every_steps", "1"),
    *("--epochs", "1000000", "--log.eval_every_epochs", "1000000"),  # practically endless
    *("--data.workers", "1", "--checkpoint.every_minutes", "0.05"),
)


class Run:
    """A training run on the cluster."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, *settings: str) -> None:
        self.cluster, self.folder = cluster, RunFolder(folder / "runs" / name)
        self.environment = os.environ | cluster.environment
        data = ("--data.train", str(folder / "train.beton"), "--data.val", str(folder / "train.beton"))
        self.settings = (*SMALL, *data, *settings)

    def submit(self, *options: str) -> float:
        """Runs jobs/submit.py; returns the seconds that it took."""
        command = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(CONFIG), *self.settings]
        command += ["--cluster", "slurm", "--gpus", "2", "--cpus-per-gpu", "1", "--stall-seconds", "5"]
        command += ["--runs-dir", str(self.folder.path.parent), "--name", self.folder.path.name, "--partition", "low"]
        command += options
        return timed(lambda: subprocess.run(command, env=self.environment, check=True, capture_output=True))

    @property
    def job(self) -> str:
        """The job ID."""
        return str(self.events("submitted")[-1]["job"])

    def events(self, name: str) -> list[Event]:
        """The ledger events with this name."""
        return [event for event in self.folder.events() if event["event"] == name]

    def steps(self) -> int:
        """The number of completed steps."""
        records = read_lines(self.folder.metrics)
        return int(records[-1]["step"]) if records else 0

    def wait_for_step(self, start: int) -> None:
        """Waits for the first step after the start with this number, counted from 1."""
        wait_for(lambda: len(self.events("started")) >= start, "the start", 120)
        first = int(self.events("started")[start - 1]["step"])
        wait_for(lambda: self.steps() > first, "a step", 120)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks."""
        return self.processes("vit.train (rank")

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of this run whose command line contains `name`."""
        out = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if name in command and str(self.folder.path) in command and "srun" not in command:
                    out.append(process)
        return out


def timed(action: Callable[[], object]) -> float:
    """Calls a function and returns the seconds that it took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def make_data(folder: Path) -> None:
    """Writes 512 images of Fashion-MNIST to train.beton."""
    write = [sys.executable, "-m", "data_prep.write_beton", "fashion-mnist", "--mode", "raw", "--workers", "1"]
    out = ["--split", "train", "--limit", "512", "--out", str(folder / "train.beton")]
    subprocess.run([*write, *out], cwd=ROOT, check=True, capture_output=True)
