"""What it costs to be interrupted: seconds from a fault to the next step, and the share of steps that is left.

python benchmarks/recovery.py [--quick] [--minutes 60]

On a real Slurm of two nodes on this machine (tests/helpers/slurm_cluster.py; needs root), with a small model on
CPU ranks, and both sides of each comparison in one run.  A restart in place is held against its parts: ranks started by
hand, without job, supervisor and fault, up to their first step.  Nothing is compiled on either side.  A requeue is told
in its parts: Slurm's wait, the imports, the look at the node, and the ranks up to their first step.  The last line is
one JSON object with all figures; those of a full run are kept in benchmarks/results/recovery.json.

The hour of faults: a rank killed, a rank stopped for good, the job requeued, or told to save and requeue itself, one
every three minutes on average; it saves every three seconds, and a step may stand still for five (--stall-seconds 5, by
default 60).  Five times in the hour it is left alone for a minute and a half: its steps/s then are the other side, on a
machine whose load changes.  What a fault costs is counted up to the first step that is new.

The model of a long run: a ViT-B of 300 epochs on 4 A100s, preempted each hour and saved every ten minutes, computes

    (3600 s - save - start - 5 x save) / 3600 s

of each hour of its allocation, where `save` is the time in which this machine makes 1.385 GB safe, and `start` the time
from the job's start to its first step here, with nothing to compile: a minute of that would cost 0.017 more.  Waiting
in the queue costs no allocation.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil

from tests.helpers.slurm_cluster import Cluster, missing, wait_for
from vit.checkpoint.format import commit, write_part
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import read_lines

VIT_B_BYTES = 1.385e9  # weights, two moments and an average
SAVES_AN_HOUR = 6  # of which one is the preemption's
CONFIG = ROOT / "configs" / "demo.yaml"
SMALL = (
    *("--device", "cpu", "--global_batch", "64", "--micro_batch", "32", "--log.every_steps", "1"),
    *("--epochs", "1000000", "--log.eval_every_epochs", "1000000"),  # it never ends by itself
    *("--data.workers", "1", "--checkpoint.every_minutes", "0.05"),
)
SAVED_BYTES = 112_000_000  # of a save that is timed
BLOCKS, ALONE_SECONDS, FAULT_SECONDS = 5, 90, 180  # of the hour; without faults in each; between two on average


class Run:
    """A run on the cluster, and how long things take in it."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, *settings: str) -> None:
        self.cluster, self.folder = cluster, RunFolder(folder / "runs" / name)
        self.environment = os.environ | cluster.environment
        data = ("--data.train", str(folder / "train.beton"), "--data.val", str(folder / "train.beton"))
        self.settings = (*SMALL, *data, *settings)

    def submit(self, *options: str) -> float:
        """Seconds that the command takes."""
        command = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--config", str(CONFIG), *self.settings]
        command += ["--cluster", "slurm", "--gpus", "2", "--cpus-per-gpu", "1", "--stall-seconds", "5"]
        command += ["--runs-dir", str(self.folder.path.parent), "--name", self.folder.path.name, "--partition", "low"]
        command += options
        return timed(lambda: subprocess.run(command, env=self.environment, check=True, capture_output=True))

    @property
    def job(self) -> str:
        """The job's number."""
        return str(self.events("submitted")[-1]["job"])

    def events(self, name: str) -> list[Event]:
        """What happened under that name."""
        return [e for e in self.folder.events() if e["event"] == name]

    def steps(self) -> int:
        """Steps done."""
        records = read_lines(self.folder.metrics)
        return int(records[-1]["step"]) if records else 0

    def until_step(self, start: int) -> None:
        """Waits for the first step of the start that has this number, from 1."""
        wait_for(lambda: len(self.events("started")) >= start, "the start", 120)
        at = int(self.events("started")[start - 1]["step"])
        wait_for(lambda: self.steps() > at, "a step", 120)

    def ranks(self) -> list[psutil.Process]:
        """The ranks' processes."""
        return self.processes("vit.train (rank")

    def processes(self, name: str) -> list[psutil.Process]:
        """The run's processes of a name."""
        out = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if name in command and str(self.folder.path) in command and "srun" not in command:
                    out.append(process)
        return out


def timed(action: Callable[[], object]) -> float:
    """Seconds that something takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def make_data(folder: Path) -> None:
    """512 real images; nothing is ever evaluated."""
    write = [sys.executable, "-m", "data_prep.write_beton", "fashion-mnist", "--mode", "raw", "--workers", "1"]
    out = ["--split", "train", "--limit", "512", "--out", str(folder / "train.beton")]
    subprocess.run([*write, *out], cwd=ROOT, check=True, capture_output=True)


def by_hand(folder: Path, settings: tuple[str, ...], name: str) -> float:
    """Seconds from the start of two bare ranks to their first step: imports, process group, data, model."""
    run = RunFolder(folder / "runs" / name)
    command = [sys.executable, "-m", "vit.train", "--config", str(CONFIG), *settings, "--run-dir", str(run.path)]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    place["MASTER_PORT"] = str(random.randint(10_000, 30_000))
    run.path.mkdir(parents=True)
    ranks: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        for rank in ("0", "1"):
            own = os.environ | place | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
            ranks.append(subprocess.Popen(command, env=own, cwd=folder, stdout=subprocess.DEVNULL))
        wait_for(lambda: read_lines(run.metrics), "a step", 120)

    seconds = timed(start)
    for process in ranks:
        process.kill()
        process.wait()
    return seconds


def faults(run: Run, rounds: int) -> dict[str, float]:
    """Seconds of a restart in place, of a save on a signal, and of a requeue with its parts."""
    run.submit()
    run.until_step(1)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        starts = len(run.events("started"))
        wait_for(lambda: run.events("checkpoint"), "a checkpoint")
        victim = run.ranks()[-1]
        begun = time.time()
        victim.kill()
        run.until_step(starts + 1)
        times["in_place_s"].append(time.time() - begun)
        times["in_place_found_s"].append(run.events("restarting in place")[-1]["time"] - begun)
        stops = len(run.events("stopped"))
        begun = time.time()
        run.cluster.call("scancel", "--signal", "USR2", run.job)
        wait_for(lambda: len(run.events("stopped")) > stops, "the save")  # noqa: B023
        stopped = run.events("stopped")[-1]["time"]
        times["save_s"].append(stopped - begun)
        run.until_step(starts + 2)
        stepped = time.time()
        (job,) = (p.create_time() for p in run.processes("submitit.core"))
        ready, looked = (run.events(name)[-1]["time"] for name in ("supervising", "looked over"))
        times["requeue_s"].append(stepped - stopped)
        times["requeue_wait_s"].append(job - stopped)
        times["requeue_imports_s"].append(ready - job)
        times["requeue_look_s"].append(looked - ready)
        times["requeue_ranks_s"].append(stepped - looked)
        times["start_s"].append(stepped - job)
    run.cluster.call("scancel", run.job)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def submitting(cluster: Cluster, folder: Path, times: int) -> dict[str, float]:
    """Seconds of the command, also over those of sbatch and of Python, with the libraries it needs and without."""
    bare = ("sbatch", "--hold", "--partition", "low", "--output", "/dev/null", "--wrap", "true")

    def python(program: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", program], check=True))

    runs = [Run(cluster, folder, f"submit-{i}") for i in range(times)]
    submit = min(run.submit("--sbatch", "hold") for run in runs)  # or the next one would be beside a start
    sbatch = min(timed(lambda: cluster.call(*bare)) for _ in range(3))
    start, libraries = (min(python(p) for _ in range(times)) for p in ("pass", "import submitit, jsonargparse"))
    return {
        "submit_s": submit, "sbatch_s": sbatch, "python_s": start, "python_with_libraries_s": libraries,
        "submit_vs_sbatch": submit / (sbatch + libraries), "submit_vs_bare_python": submit / (sbatch + start),
    }  # fmt: skip


def goodput(run: Run, minutes: float) -> dict[str, float]:
    """Steps/s with a fault every three minutes on average, over those without any; and how many faults there were."""
    run.submit()
    run.until_step(1)
    dice = random.Random(0)
    alone = disturbed = struck = 0.0
    for block in range(1, BLOCKS + 1):
        alone += rate(run, lambda: time.sleep(ALONE_SECONDS)) / BLOCKS
        disturbed += rate(run, lambda: under_faults(run, 60 * minutes / BLOCKS, dice)) / BLOCKS
        struck = len(run.events("started")) - 1
        share = disturbed * BLOCKS / block / (alone * BLOCKS / block)
        print(f"after {block} of {BLOCKS} blocks: {struck:.0f} restarts, goodput {share:.3f}", flush=True)
    run.cluster.call("scancel", run.job)
    return {
        "steps_per_s": alone,
        "steps_per_s_faults": disturbed,
        "restarts": struck,
        "goodput_faults": disturbed / alone,
    }


def rate(run: Run, meanwhile: Callable[[], None]) -> float:
    """New steps a second."""
    steps = run.steps()
    seconds = timed(meanwhile)
    return (run.steps() - steps) / seconds


def under_faults(run: Run, seconds: float, dice: random.Random) -> None:
    """Faults for so many seconds; then until the run is where it was at the last one, and further."""
    begun, furthest = time.monotonic(), run.steps()
    while (wait := dice.expovariate(1 / FAULT_SECONDS)) < (left := begun + seconds - time.monotonic()):
        time.sleep(wait)
        furthest = max(furthest, run.steps())
        with suppress(IndexError, psutil.Error):  # it may not have any ranks just now
            strike(run, dice.choice(["kill", "stop", "requeue", "save and requeue"]), dice)
    time.sleep(max(0.0, left))
    wait_for(lambda: run.steps() > furthest, "a new step", 300)


def strike(run: Run, fault: str, dice: random.Random) -> None:
    """One fault."""
    if fault in {"kill", "stop"}:
        dice.choice(run.ranks()).send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    elif fault == "requeue":
        run.cluster.call("scontrol", "requeue", run.job, check=False)
    else:
        run.cluster.call("scancel", "--signal", "USR2", run.job, check=False)


def save_seconds_per_byte(folder: Path) -> float:
    """What it takes to write a part, give the checkpoint its name, and have both on the disk."""
    data = memoryview(os.urandom(SAVED_BYTES))
    layout = {"all": {"dtype": "uint8", "shape": [SAVED_BYTES], "part": 0, "offset": 0, "bytes": SAVED_BYTES}}
    return timed(lambda: commit(folder, 1, layout, [write_part(folder, 1, 0, data, [SAVED_BYTES])], {})) / SAVED_BYTES


def measure(quick: bool, minutes: float) -> dict[str, float | bool]:
    """All figures."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    data = subprocess.Popen([sys.executable, __file__, "--make-data", str(folder)])
    cluster = Cluster()
    try:
        data.wait()
        run = Run(cluster, folder, "faults", *(("--checkpoint.every_minutes", "0.02") if quick else ()))
        parts = by_hand(folder, run.settings, "by-hand")
        figures: dict[str, float | bool] = dict(faults(run, 1 if quick else 5))
        if not quick:
            parts = statistics.median([parts, *(by_hand(folder, run.settings, f"by-hand-{i}") for i in range(4))])
        figures |= submitting(cluster, folder, 2 if quick else 5)
        figures["vit_b_save_s"] = save_seconds_per_byte(folder / "save") * VIT_B_BYTES
        figures["parts_s"] = parts
        figures["in_place_vs_parts"] = figures["in_place_s"] / parts
        figures["in_place_vs_requeue"] = figures["in_place_s"] / figures["requeue_s"]
        lost = SAVES_AN_HOUR * figures["vit_b_save_s"] + figures["start_s"]
        figures["goodput_model"] = (3600 - lost) / 3600
        # Of three minutes: a restart, and half the time between two checkpoints is done again.
        estimate = 1 - (figures["in_place_s"] + 1.5) / 180
        figures |= (
            {"goodput_faults": estimate}
            if quick
            else goodput(Run(cluster, folder, "goodput", "--log.every_steps", "10"), minutes)
        )
        figures["goodput_faults_is_an_estimate"] = quick
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {name: value if isinstance(value, bool) else round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Prints a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 50 s; the hour of faults is estimated")
    parser.add_argument("--minutes", type=float, default=60, help="of faults (default: 60)")
    parser.add_argument("--make-data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make_data:
        make_data(options.make_data)
        return
    if why := missing():
        sys.exit(f"recovery.py: {why}")
    figures = measure(options.quick, options.minutes)
    for name, value in figures.items():
        print(f"{name:<32}{value!s:>12}")
    if not options.quick:
        (ROOT / "benchmarks" / "results" / "recovery.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
