"""Draws the pictures of the READMEs: a run that is preempted and crashes ten times, on a real Slurm on this machine.

python benchmarks/interruptions.py --out benchmarks/results

The same run is trained twice, once undisturbed.  Both must end with the same bits.  Written are the learning curves of
both, one over the other (`jobs/report.py`), and what `jobs/status.py --watch` and `jobs/doctor.py` showed meanwhile.
Needs root and Slurm's packages (tests/README.md); takes seven minutes.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil

from benchmarks.terminal import draw, screen
from tests.helpers.cluster_case import Case
from tests.helpers.slurm_cluster import Cluster, missing
from tests.helpers.waiting import wait_for
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.history.attempts import read_attempts
from vit.history.time_spent import time_spent
from vit.run.command import run_command
from vit.run.folder import RunFolder

STEPS = Config(epochs=6, global_batch=128, micro_batch=32).steps(6, 60_000)  # of configs/demo.yaml
OPTIONS = (
    *("--nodes", "1", "--gpus", "2", "--cpus-per-gpu", "1", "--time", "1:00:00", "--partition", "low"),
    *("--stall-seconds", "5", "--checkpoint.every_minutes", "0.1", "--log.eval_every_epochs", "0.25"),
)
COLUMNS, ROWS = 118, 54  # of the terminal
STATUS = "python jobs/status.py --watch runs/interrupted"
DOCTOR = "python jobs/doctor.py --config configs/demo.yaml --gpus 2 --cpus-per-gpu 1 --partition low"
WATCHED_SECONDS = 4.0  # after which the picture of --watch is taken


def faults(case: Case) -> list[Callable[[], object]]:
    """Ten interruptions, in this order."""

    def node_dies() -> None:
        node = case.slurm.job(case.job)["BatchHost"]
        case.slurm.kill_node(node)
        wait(lambda: case.slurm.state(case.job) != "RUNNING", "the requeue")
        case.slurm.restart(f"slurmd-{node}")

    return [
        case.preempt,
        lambda: kill(case.ranks()[0]),
        lambda: case.slurm.call("scontrol", "requeue", case.job),
        lambda: kill(case.ranks()[1]),
        node_dies,
        case.preempt,
        lambda: case.ranks()[1].send_signal(signal.SIGSTOP),
        lambda: kill(case.supervisors()[0]),
        lambda: kill(case.ranks()[0]),
        case.preempt,
    ]


wait = partial(wait_for, seconds=300)


def kill(process: psutil.Process) -> None:
    """SIGKILL."""
    process.kill()


def interrupt(case: Case, picture: Callable[[], None]) -> None:
    """Injects the faults at even distances, each once the run is past the step where the one before hit it."""
    planned = faults(case)
    for i, fault in enumerate(planned):
        step = (i + 1) * STEPS // (len(planned) + 1)
        wait(lambda step=step: case.steps_done() >= step, f"step {step}")  # type: ignore[misc]
        starts, reached = len(case.start_steps()), case.steps_done()
        fault()
        wait(lambda starts=starts: len(case.start_steps()) > starts, "the restart")  # type: ignore[misc]
        print(f"interruption {i + 1}: at step {reached:,}, resumed at step {case.start_steps()[-1]:,}", flush=True)
        if i == len(planned) - 2:
            wait(lambda reached=reached: case.steps_done() > reached, "a new step")  # type: ignore[misc]
            picture()


def prepare(folder: Path) -> None:
    """A folder in which the commands can be typed as in a clone, with the demo's data."""
    for name in ("jobs", "configs", "vit", "data_prep"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    for split in ("train", "val"):
        out = f"data/fashion-mnist/{split}.beton"
        write = [sys.executable, "-m", "data_prep.write_beton", "fashion-mnist", "--split", split, "--out", out]
        subprocess.run([*write, "--mode", "raw"], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def take(command: str, folder: Path, cluster: Cluster, out: Path, seconds: float | None = None) -> None:
    """Writes a picture of what a command shows on a terminal."""
    words = [str(folder / ".venv" / "bin" / "python") if word == "python" else word for word in command.split()]
    draw(screen(words, folder, os.environ | cluster.environment, COLUMNS, ROWS, seconds), command, out)
    print(f"wrote {out}", flush=True)


def train(folder: Path, cluster: Cluster, out: Path) -> None:
    """Trains both runs and draws the pictures.  Raises RuntimeError if their bits differ."""
    undisturbed = Case(cluster, RunFolder(folder / "runs" / "undisturbed"), OPTIONS)
    interrupted = Case(cluster, RunFolder(folder / "runs" / "interrupted"), OPTIONS)
    for case in (undisturbed, interrupted):
        done = case.submit()
        if done.returncode:
            raise RuntimeError(done.stderr)
        if case is interrupted:
            interrupt(case, lambda: take(STATUS, folder, cluster, out / "status.svg", WATCHED_SECONDS))
        case.finish()
    if undisturbed.weights(STEPS) != interrupted.weights(STEPS):
        raise RuntimeError("the runs end with different bits")
    attempts = read_attempts(interrupted.run.events())
    print(f"{STEPS:,} steps in {len(attempts)} attempts; the same bits. {time_spent(attempts).describe()}")
    report = [sys.executable, str(ROOT / "jobs/report.py"), "runs/interrupted", "--over", "runs/undisturbed"]
    for name, options in (("interruptions.svg", []), ("interruptions-dark.svg", ["--dark"])):
        subprocess.run([*report, "--out", str((out / name).absolute()), *options], cwd=folder, check=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=user_path, required=True, metavar="FOLDER", help="folder for the pictures")
    parser.add_argument("--keep", type=user_path, metavar="FOLDER", help="copy the run folders there")
    options = parser.parse_args()
    why = missing()
    if why:
        print(f"interruptions.py: {why}", file=sys.stderr)
        return 1
    folder, cluster, started = Path(tempfile.mkdtemp(prefix="interruptions-")), Cluster(), time.monotonic()
    try:
        prepare(folder)
        take(DOCTOR, folder, cluster, options.out / "doctor.svg")
        train(folder, cluster, options.out)
        if options.keep:
            shutil.copytree(folder / "runs", options.keep, dirs_exist_ok=True)
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    run_command(main)
