"""Time to finish, queue included, of a run with `--gpus 1-4` and of the same run with a fixed number of GPUs.

python benchmarks/elastic.py [--quick] [--seeds 0 1] [--ways 1-4 4 1]

Runs on real Slurm clusters of two nodes with four simulated GPUs each (tests/helpers/slurm_cluster.py; needs root):
one cluster for each way to submit and each load, all at the same time.  The loads are jobs of other users
that arrive and end by a seeded schedule (tests/helpers/background_load.py).  Slurm's own scheduler decides what starts.

The ranks run on this machine's few CPU cores, where four of them are not faster than one.  Therefore each step also
sleeps for a time that is inversely proportional to the number of ranks: RANK_SECONDS / ranks
(tests/helpers/slow_checkout.py).  The speed-up is simulated; queueing, starts, saves, handovers and bits are real.

Reported for each way and seed: seconds from submission to the end of the run; GPU-seconds that Slurm has accounted;
GPU-seconds of allocations in which no step was made (a job that was declined, or waited in vain); seconds from the
start of an allocation with more GPUs than the one before to its first step; the number of handovers; and whether the
final weights, optimizer state and EMA have the same bits everywhere.  The last line is one JSON object with all
figures; a full run writes them to benchmarks/results/elastic.json.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cluster_run import make_data
from benchmarks.measured.allocations import allocations
from benchmarks.measured.machine import machine, save_figures
from tests.helpers.background_load import CORES, LoadJob, loaded, random_load
from tests.helpers.cluster_case import settings
from tests.helpers.elastic_case import ElasticCase
from tests.helpers.slow_checkout import overlaps, rank_steps, slow_checkout
from tests.helpers.slurm_cluster import Cluster, missing
from vit.run.command import run_command
from vit.run.folder import RunFolder

WAYS = ("1-4", "4", "1")
STEPS_PER_EPOCH = 8
# Full run: 192 seconds on one GPU, 48 on four; other users' jobs take two minutes on average, and 95 % of all GPUs.
RANK_SECONDS, EPOCHS, MEAN_SECONDS, SHARE, LENGTH = 4.0, 6, 120.0, 0.95, 600.0
QUICK_RANK_SECONDS, QUICK_EPOCHS = 1.0, 2
QUICK_LOAD = [LoadJob(0, 4, 60, "n1"), LoadJob(0, 3, 10, "n2")]  # a single GPU is free at once, four a little later
MIN_GAIN_MINUTES = "0.1"  # of --min-gain: the run takes minutes here, and not days


def run_one(
    cluster: Cluster, folder: Path, name: str, checkout: Path, way: str, load: Sequence[LoadJob], epochs: int
) -> Any:
    """Submits the run in one way while the load is on the cluster; returns its figures."""
    run = RunFolder(folder / "runs" / name)
    case = ElasticCase(cluster, run, settings(folder)).with_source(checkout)
    options = [
        "--data.val",
        str(folder / "train.beton"),
        "--epochs",
        str(epochs),
        "--time",
        "15",
        "--gpus",
        way,
        *CORES,
    ]
    with loaded(cluster, load):
        submitted = time.time()
        done = case.submit(*options, "--min-gain", MIN_GAIN_MINUTES)
        assert done.returncode == 0, done.stderr
        case.finish(1800)
    finished = run.last("finished")
    assert finished is not None
    steps = rank_steps(run.path)
    found = allocations(cluster, case.jobs(), steps)
    used = [each for each in found if each.first_step is not None]
    grown = [later for before, later in pairwise(used) if later.gpus > before.gpus]
    return {
        "finish_s": round(finished["time"] - submitted, 1),
        "gpu_seconds": round(sum(each.gpu_seconds for each in found), 1),
        "unused_gpu_seconds": round(sum(each.gpu_seconds for each in found if each.first_step is None), 1),
        "unused_allocations": sum(each.first_step is None for each in found),
        "start_s": [round(each.first_step - each.start, 1) for each in used if each.first_step is not None],
        "larger_start_s": [round(each.first_step - each.start, 1) for each in grown if each.first_step is not None],
        "sizes": [each.gpus for each in used],
        "one_owner_at_a_time": not overlaps(steps),
        "weights": hashlib.sha256(case.weights(epochs * STEPS_PER_EPOCH)).hexdigest()[:16],
    }


def measure(quick: bool, seeds: Sequence[int], ways: Sequence[str]) -> dict[str, Any]:
    """Measures all ways under all loads, at the same time."""
    folder = Path(tempfile.mkdtemp(prefix="elastic-"))
    epochs = QUICK_EPOCHS if quick else EPOCHS
    tasks = [(seed, way) for seed in seeds for way in ways]
    clusters = []
    results: dict[str, list[Any]] = {way: [] for way in ways}
    try:
        with ThreadPoolExecutor(len(tasks) + 1) as pool:
            data = pool.submit(make_data, folder)
            started = [pool.submit(Cluster) for _ in tasks]
            checkout = slow_checkout(folder / "source", QUICK_RANK_SECONDS if quick else RANK_SECONDS)
            clusters += [each.result() for each in started]
            data.result()
            loads = {seed: QUICK_LOAD if quick else random_load(seed, LENGTH, MEAN_SECONDS, SHARE) for seed in seeds}
            running = [
                pool.submit(run_one, cluster, folder, f"seed-{seed}-gpus-{way}", checkout, way, loads[seed], epochs)
                for cluster, (seed, way) in zip(clusters, tasks, strict=True)
            ]
            for (seed, way), task in zip(tasks, running, strict=True):
                results[way].append(task.result())
                print(f"seed {seed}, --gpus {way}: {results[way][-1]}", file=sys.stderr, flush=True)
    finally:
        for cluster in clusters:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    digests = {each["weights"] for way in ways for each in results[way]}
    return {
        "seeds": list(seeds),
        "steps": epochs * STEPS_PER_EPOCH,
        "rank_seconds": QUICK_RANK_SECONDS if quick else RANK_SECONDS,
        "same_bits": len(digests) == 1,
        "ways": {way: summary(results[way]) for way in ways},
        "runs": results,
        "machine": machine(),
    }


def summary(runs: Sequence[Any]) -> dict[str, Any]:
    """Means over the seeds; the median of the times from the start of a larger allocation to its first step."""
    larger = [seconds for each in runs for seconds in each["larger_start_s"]]
    out = {name: round(statistics.mean(each[name] for each in runs), 1) for name in ("finish_s", "gpu_seconds")}
    out["unused_gpu_seconds"] = round(statistics.mean(each["unused_gpu_seconds"] for each in runs), 1)
    out["handovers"] = sum(len(each["sizes"]) - 1 for each in runs)
    return {**out, "larger_start_s": round(statistics.median(larger), 1) if larger else None}


def table(figures: dict[str, Any]) -> str:
    """The figures for people, as rows of Markdown."""
    seeds = figures["seeds"]
    lines = [
        "| | " + " | ".join(f"finish, seed {seed}" for seed in seeds) + " | mean | GPU-s | of these unused | start |"
    ]
    lines += ["|---|" + "---:|" * (len(seeds) + 4)]
    for way, mean in figures["ways"].items():
        runs = figures["runs"][way]
        each = " | ".join(f"{one['finish_s']:.0f} s ({'→'.join(map(str, one['sizes']))})" for one in runs)
        start = "" if mean["larger_start_s"] is None else f"{mean['larger_start_s']:.0f} s"
        row = f"| `--gpus {way}` | {each} | {mean['finish_s']:.0f} s | {mean['gpu_seconds']:.0f} "
        lines.append(row + f"| {mean['unused_gpu_seconds']:.0f} | {start} |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 s: a short run, one small load")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the loads (default: 0 1)")
    parser.add_argument("--ways", nargs="+", default=WAYS, metavar="GPUS", help="values of --gpus (default: 1-4 4 1)")
    options = parser.parse_args()
    why = missing()
    if why:
        sys.exit(f"elastic.py: {why}")
    figures = measure(options.quick, [0] if options.quick else options.seeds, options.ways)
    print(table(figures))
    print(f"same bits: {'yes' if figures['same_bits'] else 'NO'}")
    if not options.quick and tuple(options.ways) == WAYS:
        save_figures("elastic", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
