"""A small run on the test cluster, for tests that inject faults."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.helpers.background import in_background
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import Cluster, missing
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import read_lines

SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(ROOT / "configs" / "demo.yaml")]
STEPS = 48  # of the whole run, which takes about a second unless it is slowed down
FAILED_STATES = {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

campaign = pytest.mark.campaign


def settings(betons: Path) -> tuple[str, ...]:
    """Options of a run with 8 steps per epoch and four micro-batches of 16 images per step, for 1, 2 or 4 ranks."""
    data = ("--data.train", str(betons / "train.beton"), "--data.val", str(betons / "val.beton"), "--data.workers", "1")
    small = ("--epochs", str(STEPS // 8), "--global_batch", "64", "--micro_batch", "16", "--log.every_steps", "1")
    resources = ("--cpus-per-gpu", "1", "--time", "1:00:00", "--partition", "low")
    return (*data, *small, "--model.depth", "1", "--optim.warmup_epochs", "1", "--device", "cpu", *resources)


@contextmanager
def own_cluster(settings: Mapping[str, str | None] | None = None, partitions: Sequence[str] = ()) -> Iterator[Cluster]:
    """A cluster with other settings, for the tests of one module."""
    if why := missing():
        pytest.skip(why)
    cluster = Cluster(settings, partitions)
    try:
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def new_case(slurm: Cluster, betons: Path, folder: Path) -> "Iterator[Case]":
    """A new run on a cluster whose nodes are idle; jobs that a failed test left are canceled."""
    yield Case(slurm, RunFolder(folder / "runs" / "run"), settings(betons))
    slurm.call("scancel", "--user", "root", check=False)
    slurm.resume_drained()
    slurm.wait_until_idle(120)


@dataclass(frozen=True)
class Case:
    """A run on the cluster, and what a test does to it."""

    slurm: Cluster
    run: RunFolder
    options: tuple[str, ...]
    command: tuple[str, ...] = tuple(SUBMIT)

    def submit(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """Runs submit.py."""
        command = self.popen(*options)
        out, err = command.communicate(timeout=120)
        return subprocess.CompletedProcess(command.args, command.returncode, out, err)

    def popen(self, *options: str) -> "subprocess.Popen[str]":
        """Starts submit.py and does not wait."""
        self.run.path.parent.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*self.command, "--cluster", "slurm", "--name", self.run.path.name, *self.options, *options],
            cwd=self.run.path.parents[1], env=os.environ | self.slurm.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def says(self, command: str, *arguments: str) -> str:
        """What one of our commands prints, in one line, so that it may be wrapped."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / command), *arguments], env=os.environ | self.slurm.environment,
            cwd=self.run.path.parents[1], capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def status(self) -> str:
        """What status.py says about the run."""
        return self.says("status.py", str(self.run.path))

    def start(self, *options: str, until_step: int = 3) -> str:
        """Submits the run, waits until it has done some steps, and returns the job's id."""
        done = self.submit(*options)
        assert done.returncode == 0, done.stderr
        self.wait_until(lambda: self.steps_done() >= until_step, f"step {until_step}")
        return self.job

    def submit_patched(self, file: str, line: str, more: str, *options: str) -> None:
        """Submits the run, and adds code after a line of the source in the run folder, which the job runs."""
        done = self.submit("--gpus", "2", *options)
        assert done.returncode == 0, done.stderr
        source = self.run.source / file
        assert source.read_text().count(line) == 1
        source.write_text(source.read_text().replace(line, line + more))

    def submit_raising(self, condition: str) -> None:
        """Submits a run in which a rank raises OSError in a step; the file `once` exists after the first time."""
        self.submit_patched(
            "vit/training/trainer.py",
            '        compiling = self.cfg.compile and not skipped and not self.clock.seconds.get("compile")\n',
            f"""        once = self.run.path / "once"
        {condition}
            once.touch()
            raise OSError("the disk is on fire")
""",
        )

    @property
    def job(self) -> str:
        """The id of the job that was submitted last."""
        submitted = self.run.last("submitted")
        assert submitted is not None
        return str(submitted["job"])

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 400) -> None:
        """Waits for a condition.  Fails, with all that the job printed, at the timeout or if the job fails."""
        begun = checked = time.monotonic()
        while not condition():
            now, failed = time.monotonic(), False
            if now - checked > 2:
                checked, failed = now, self.slurm.state(self.job) in FAILED_STATES
            if (now - begun > seconds or failed) and not condition():
                pytest.fail(f"{'the job failed' if failed else 'timeout'} while waiting for {what}\n{self.output()}")
            time.sleep(0.05)

    @contextmanager
    def slowed(self, seconds: float = 0.3) -> Iterator[threading.Event]:
        """Stops rank 0 for a while after each step, by SIGSTOP, so that a fault hits the run before it finishes.

        Once the event is set, rank 0 is stopped for good, even if it is resumed by another process.
        """
        hold = threading.Event()

        def slow_down(over: threading.Event) -> None:
            while not over.is_set():
                ranks, before = self.ranks()[:1], self.steps_done()
                with suppress(psutil.NoSuchProcess):
                    while ranks and not over.wait(0.003 if hold.is_set() else 0.01) and _is_alive(ranks[0]):
                        if hold.is_set():
                            ranks[0].suspend()
                        elif (done := self.steps_done()) > before:
                            before = done
                            ranks[0].suspend()
                            begun = time.monotonic()
                            while time.monotonic() < begun + seconds and not (hold.is_set() or over.is_set()):
                                time.sleep(0.01)
                            if not hold.is_set():
                                ranks[0].resume()
                over.wait(0.1)

        with in_background(slow_down):
            yield hold

    def preempt(self) -> None:
        """Submits a job of a higher partition that takes all nodes for a second."""
        options = ("--nodes", str(len(self.slurm.nodes)), "--exclusive", "--output", "/dev/null", "--wrap", "sleep 1")
        self.slurm.call("sbatch", "--partition", "high", *options)

    def preempt_and_finish(self) -> None:
        """Preempts the job before it finishes, and waits for its end; checks that no step was lost or repeated."""
        with self.slowed():
            self.preempt()
            self.wait_until(lambda: self.events("stopped"), "the save")
        self.finish()
        assert self.start_steps() == [0, self.stop_step()]

    def finish(self, seconds: float = 400) -> None:
        """Waits until the run and its job are complete."""
        self.wait_until(self.run.finished, "the end of the run", seconds)
        # Slurm 24.05 and later call a job PREEMPTED that has completed after it was preempted under PreemptMode=CANCEL.
        ended = ("COMPLETED", "PREEMPTED")
        self.wait_until(lambda: self.slurm.state(self.job) in ended, "the end of the job")

    def requeue_and_finish(self) -> None:
        """Requeues the job before it finishes, and waits for its end; checks that no step was lost or repeated."""
        with self.slowed():
            self.slurm.call("scontrol", "requeue", self.job)
            self.wait_until(lambda: self.events("stopped"), "the save")
        self.finish()
        assert self.start_steps() == [0, self.stop_step()]

    def steps_done(self) -> int:
        records = read_lines(self.run.metrics)
        return int(records[-1]["step"]) if records else 0

    def events(self, name: str) -> list[Event]:
        """The ledger's events with this name."""
        return [e for e in self.run.events() if e["event"] == name]

    def start_steps(self) -> list[int]:
        """The steps at which the run started and resumed."""
        return [e["step"] for e in self.events("started")]

    def stop_step(self) -> int:
        """The step of the last checkpoint that was saved because the run was asked to stop."""
        return int(self.events("stopped")[-1]["step"])

    def resumed_from_newest_checkpoint(self) -> bool:
        """Whether the run was restarted, and each time from the newest checkpoint that was saved."""
        saved, starts = 0, 0
        for event in self.run.events():
            if event["event"] == "started":
                starts += 1
                if event["step"] < saved or (starts > 1 and not event["step"]):
                    return False
            elif event["event"] in {"checkpoint", "stopped"}:
                saved = max(saved, event["step"])
        return starts > 1

    def weights(self, steps: int = STEPS) -> bytes:
        """The bits of all tensors in the finished run's last checkpoint: weights, optimizer state, EMA."""
        newest = find_checkpoints(self.run.checkpoints)[0]
        assert newest.name == f"step-{steps:08d}"
        tensors, _ = load_checkpoint(newest)
        return b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))

    def processes(self, name: str) -> list[psutil.Process]:
        """The run's processes with this name in their command line."""
        out = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                ours = name in command and str(self.run.path) in command and "srun" not in command
                if ours and process.name() != "slurm_script" and process.status() != psutil.STATUS_ZOMBIE:
                    out.append(process)
        return out

    def ranks(self) -> list[psutil.Process]:
        """The training processes, in rank order."""
        out = {}
        for process in self.processes("vit.train (rank"):
            with suppress(psutil.Error, ValueError):  # it may end at this moment
                out[int(" ".join(process.cmdline()).partition("(rank ")[2].partition(")")[0])] = process
        return [out[rank] for rank in sorted(out)]

    def supervisors(self) -> list[psutil.Process]:
        """The process above the ranks of each node."""
        return self.processes("submitit.core")

    def job_output(self) -> str:
        """What the job printed, over all its starts."""
        return "".join(file.read_text() for file in self.run.jobs.glob("*.out"))

    def output(self) -> str:
        """Ledger, logs and the job's state, for the message of a test that fails."""
        files = [self.run.ledger, *sorted(self.run.logs.glob("*")), *sorted(self.run.jobs.glob("*.out"))]
        text = "\n".join(f"== {f.name}\n" + "\n".join(f.read_text().splitlines()[-40:]) for f in files if f.exists())
        return f"{self.slurm.call('scontrol', 'show', 'job', self.job, check=False)}\n{text}"


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
