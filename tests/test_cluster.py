"""Runs on a real Slurm: whatever happens to the job, it ends with the weights of the run that was left alone.

`pytest -m campaign` runs all of them; those without that mark are the short form.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, wait_for

from vit import checkpoint
from vit.ledger import Event, RunFolder, read_lines

ROOT = Path(__file__).resolve().parents[1]
SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(ROOT / "configs" / "demo.yaml")]
STEPS = 48  # of the whole run, about 8 s of them
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

campaign = pytest.mark.campaign


@dataclass(frozen=True)
class Case:
    """A run on the cluster, and what a test does to it."""

    slurm: Cluster
    run: RunFolder
    options: tuple[str, ...]

    def submit(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """Types the command."""
        return subprocess.run(
            [*SUBMIT, "--cluster", "slurm", "--name", self.run.path.name, *self.options, *options],
            cwd=self.run.path.parents[1], env=os.environ | self.slurm.environment,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def start(self, *options: str, until_step: int = 8) -> str:
        """Submits, waits until the run has done some steps, and returns the job's number."""
        done = self.submit(*options)
        assert done.returncode == 0, done.stderr
        self.until(lambda: self.steps_done() >= until_step, f"step {until_step}")
        return self.job

    @property
    def job(self) -> str:
        """The number of the job that was submitted last."""
        submitted = self.run.last("submitted")
        assert submitted is not None
        return str(submitted["job"])

    def until(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Waits; an end of the job that is not asked for ends the waiting too, with all that the job said."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or (self.slurm.state(self.job) in ENDED - {"COMPLETED"}):
                if condition():
                    return
                pytest.fail(f"{what} never came\n{self.said()}")
            time.sleep(0.05)

    def finish(self, seconds: float = 150) -> None:
        """Waits until the run is complete, and its job with it."""
        self.until(self.run.finished, "the end of the run", seconds)
        self.until(lambda: self.slurm.state(self.job) == "COMPLETED", "the end of the job")

    def steps_done(self) -> int:
        records = read_lines(self.run.metrics)
        return int(records[-1]["step"]) if records else 0

    def starts(self) -> list[int]:
        """The steps at which the run began, and went on."""
        return [e["step"] for e in self.run.events() if e["event"] == "started"]

    def happened(self, name: str) -> list[Event]:
        """The events of a name."""
        return [e for e in self.run.events() if e["event"] == name]

    def weights(self) -> bytes:
        """All that the finished run remembers, to the bit."""
        newest = checkpoint.find(self.run.checkpoints)[0]
        assert newest.name == f"step-{STEPS:08d}"
        return (newest / "tensors.bin").read_bytes()

    def processes(self, module: str) -> list[psutil.Process]:
        """The run's processes: its ranks (`vit.train`) or its supervisors (`submitit`)."""
        out = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if module in command and str(self.run.path) in command and "srun" not in command:
                    if process.status() != psutil.STATUS_ZOMBIE and process.name() != "slurm_script":
                        out.append(process)
        return out

    def ranks(self) -> list[psutil.Process]:
        """The training processes, in the order of their ranks."""
        return sorted(self.processes("vit.train"), key=lambda p: int(p.environ()["RANK"]))

    def said(self) -> str:
        """All that happened and was printed, for a test that failed."""
        files = [self.run.ledger, *sorted(self.run.logs.glob("*")), *sorted(self.run.jobs.glob("*.out"))]
        text = "\n".join(f"== {f.name}\n" + "\n".join(f.read_text().splitlines()[-40:]) for f in files if f.exists())
        return f"{self.slurm.call('scontrol', 'show', 'job', self.job, check=False)}\n{text}"


def settings(betons: Path) -> tuple[str, ...]:
    """Four shards of 16 images a step, so that one, two or four ranks may run; 8 steps an epoch."""
    data = ("--data.train", str(betons / "train.beton"), "--data.val", str(betons / "val.beton"), "--data.workers", "1")
    small = ("--epochs", str(STEPS // 8), "--global_batch", "64", "--micro_batch", "16", "--log.every_steps", "1")
    resources = ("--cpus-per-gpu", "1", "--time", "1:00:00", "--partition", "low")
    return (*data, *small, "--model.depth", "6", "--optim.warmup_epochs", "1", "--device", "cpu", *resources)


@pytest.fixture
def case(slurm: Cluster, betons: Path, tmp_path: Path) -> Iterator[Case]:
    """A fresh run folder on a cluster whose nodes are free; jobs that a failed test left are cancelled."""
    case = Case(slurm, RunFolder(tmp_path / "runs" / "run"), settings(betons))
    yield case
    slurm.call("scancel", "--user", "root", check=False)
    slurm.call("scancel", "--user", "root", "--signal", "KILL", check=False)
    wait_for(slurm.nodes_idle, "the nodes never got free")


@pytest.fixture(scope="session")
def undisturbed(slurm: Cluster, betons: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the run that was left alone, with two ranks on one node."""
    case = Case(slurm, RunFolder(tmp_path_factory.mktemp("undisturbed") / "runs" / "run"), settings(betons))
    done = case.submit("--gpus", "2")
    assert done.returncode == 0, done.stderr
    case.finish()
    assert case.starts() == [0]
    return case.weights()


def stopped_at(case: Case) -> int:
    """The step at which the run was saved last because it was told to stop."""
    return int(case.happened("stopped")[-1]["step"])


def test_a_job_that_is_preempted_loses_no_step(case: Case, undisturbed: bytes) -> None:
    """A job of a higher partition takes the nodes; when it is done the run goes on at the very next step."""
    job = case.start("--gpus", "2", "--nodes", "2")
    case.slurm.call("sbatch", "--partition", "high", "--nodes", "2", "--exclusive", "--output", "/dev/null", "--wrap", "sleep 1")
    case.finish()
    assert case.job == job
    assert case.starts() == [0, stopped_at(case)]
    assert case.weights() == undisturbed
