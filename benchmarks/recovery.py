"""Cost of interruptions: seconds from a fault to the next training step, and goodput with regular faults.

python benchmarks/recovery.py [--quick] [--minutes 60]

Runs on a real Slurm cluster of two nodes on this machine (tests/helpers/slurm_cluster.py; needs root), with a small
model on CPU ranks and without compilation.  A restart in place is compared with its parts: ranks that are started
directly, without job, supervisor and fault, up to their first step.  The time of a requeue is broken down into Slurm's
wait, the imports, the node check, and the ranks up to their first step.  The last line is one JSON object with all
figures; a full run writes them to benchmarks/results/recovery.json.

Goodput with faults (`goodput_faults`) is measured for an hour (--minutes).  Every three minutes on average a rank is
killed or stopped with SIGSTOP, or the job is requeued, or it is asked to save and to requeue itself.  The run saves
every three seconds, and a step may stall for five (--stall-seconds 5; the default is 60).  Five times in that hour the
run gets no faults for a minute and a half, to measure its steps/s without faults, because the load of the machine
changes.  The cost of a fault is counted up to the first step that is not a repetition.

Goodput of a long run is modeled (`goodput_model`).  A ViT-B of 300 epochs on 4 A100s, preempted every hour and saved
every ten minutes, computes for

    (3600 s - save - start - 5 x save) / 3600 s

of each hour of its allocation, where `save` is the time in which this machine saves 1.385 GB safely, and `start` is the
time from the start of the job to its first step here, without compilation.  A minute of compilation would cost 0.017
more.  Time in the queue is not part of the allocation.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


from benchmarks.cluster_run import CONFIG, Run, make_data, timed
from benchmarks.goodput import goodput
from tests.helpers.slurm_cluster import Cluster, missing
from tests.helpers.waiting import wait_for
from vit.checkpoint.format import commit, write_part
from vit.config.paths import user_path
from vit.run.command import run_command
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

VIT_B_BYTES = 1.385e9  # weights, two moments and the EMA of the weights
SAVES_PER_HOUR = 6  # including the one at preemption
SAVED_BYTES = 112_000_000  # size of the save that is measured


def start_ranks_directly(folder: Path, settings: tuple[str, ...], name: str) -> float:
    """Seconds from the start of two ranks without a job to their first step: imports, process group, data, model."""
    run = RunFolder(folder / "runs" / name)
    command = [sys.executable, "-m", "vit.train", "--config", str(CONFIG), *settings, "--run-dir", str(run.path)]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared["MASTER_PORT"] = str(random.randint(10_000, 30_000))
    run.path.mkdir(parents=True)
    ranks: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        for rank in ("0", "1"):
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
            ranks.append(subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL))
        wait_for(lambda: read_lines(run.metrics), "a step", 120)

    seconds = timed(start)
    for process in ranks:
        process.kill()
        process.wait()
    return seconds


def recovery_times(run: Run, rounds: int) -> dict[str, float]:
    """Median seconds of a restart in place, of a save on a signal, and of a requeue and its parts."""
    run.submit()
    run.wait_for_step(1)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        starts = len(run.events("started"))
        wait_for(lambda: run.events("checkpoint"), "a checkpoint")
        victim = run.ranks()[-1]
        killed = time.time()
        victim.kill()
        run.wait_for_step(starts + 1)
        times["in_place_s"].append(time.time() - killed)
        times["in_place_found_s"].append(run.events("restarting in place")[-1]["time"] - killed)
        stops = len(run.events("stopped"))
        signaled = time.time()
        run.cluster.call("scancel", "--signal", "USR2", run.job)
        wait_for(lambda: len(run.events("stopped")) > stops, "the save")  # noqa: B023
        stopped = run.events("stopped")[-1]["time"]
        times["save_s"].append(stopped - signaled)
        run.wait_for_step(starts + 2)
        stepped = time.time()
        (job_started,) = (p.create_time() for p in run.processes("submitit.core"))
        supervising, checked = (run.events(name)[-1]["time"] for name in ("supervising", "node check"))
        times["requeue_s"].append(stepped - stopped)
        times["requeue_wait_s"].append(job_started - stopped)
        times["requeue_imports_s"].append(supervising - job_started)
        times["requeue_look_s"].append(checked - supervising)
        times["requeue_ranks_s"].append(stepped - checked)
        times["start_s"].append(stepped - job_started)
    run.cluster.call("scancel", run.job)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def submit_times(cluster: Cluster, folder: Path, times: int) -> dict[str, float]:
    """Seconds of jobs/submit.py, and its ratio to sbatch plus the start of Python with and without its libraries."""
    sbatch_command = ("sbatch", "--hold", "--partition", "low", "--output", "/dev/null", "--wrap", "true")

    def python(program: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", program], check=True))

    runs = [Run(cluster, folder, f"submit-{i}") for i in range(times)]
    submit = min(run.submit("--sbatch", "hold") for run in runs)  # held: no job starts meanwhile
    sbatch = min(timed(lambda: cluster.call(*sbatch_command)) for _ in range(3))
    start, libraries = (min(python(p) for _ in range(times)) for p in ("pass", "import submitit, jsonargparse"))
    return {
        "submit_s": submit, "sbatch_s": sbatch, "python_s": start, "python_with_libraries_s": libraries,
        "submit_vs_sbatch": submit / (sbatch + libraries), "submit_vs_bare_python": submit / (sbatch + start),
    }  # fmt: skip


def save_seconds_per_byte(folder: Path) -> float:
    """Seconds per byte to write and commit a checkpoint, both with fsync."""
    data = memoryview(os.urandom(SAVED_BYTES))
    layout = {"all": {"dtype": "uint8", "shape": [SAVED_BYTES], "part": 0, "offset": 0, "bytes": SAVED_BYTES}}
    return timed(lambda: commit(folder, 1, layout, [write_part(folder, 1, 0, data, [SAVED_BYTES])], {})) / SAVED_BYTES


def measure(quick: bool, minutes: float) -> dict[str, float | bool]:
    """Measures and returns all figures."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    data = subprocess.Popen([sys.executable, __file__, "--make-data", str(folder)])
    cluster = Cluster()
    try:
        data.wait()
        run = Run(cluster, folder, "faults", *(("--checkpoint.every_minutes", "0.02") if quick else ()))
        parts = [start_ranks_directly(folder, run.settings, "ranks-0")]
        figures: dict[str, float | bool] = dict(recovery_times(run, 1 if quick else 5))
        if not quick:
            parts += [start_ranks_directly(folder, run.settings, f"ranks-{i}") for i in range(1, 5)]
        figures |= submit_times(cluster, folder, 2 if quick else 5)
        figures["vit_b_save_s"] = save_seconds_per_byte(folder / "save") * VIT_B_BYTES
        figures["parts_s"] = statistics.median(parts)
        figures["in_place_vs_parts"] = figures["in_place_s"] / figures["parts_s"]
        figures["in_place_vs_requeue"] = figures["in_place_s"] / figures["requeue_s"]
        lost = SAVES_PER_HOUR * figures["vit_b_save_s"] + figures["start_s"]
        figures["goodput_model"] = (3600 - lost) / 3600
        # In three minutes: one restart, and on average half of the three seconds between two checkpoints is repeated.
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
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 s; goodput with faults is only estimated")
    parser.add_argument("--minutes", type=float, default=60, help="time with faults (default: 60)")
    parser.add_argument("--make-data", type=user_path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make_data:
        make_data(options.make_data)
        return
    why = missing()
    if why:
        sys.exit(f"recovery.py: {why}")
    figures = measure(options.quick, options.minutes)
    for name, value in figures.items():
        print(f"{name:<32}{value!s:>12}")
    if not options.quick:
        (ROOT / "benchmarks" / "results" / "recovery.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
