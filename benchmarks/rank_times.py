"""Cost of measuring each rank's own part of a step: of the calls alone, and of whole training steps with and without.

python benchmarks/rank_times.py [--quick]

Two processes train a small ViT; every second step measures.  The share of the calls is that of their time in a row to
the time of these steps.  The ratio of whole steps is the median over neighboring steps; it is noisier than the share.
On a GPU, the calls record events and read them once they have passed.  The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing

from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ChecksConfig, ModelConfig
from vit.distributed.world import World
from vit.run.command import run_command
from vit.run.slow_ranks import SlowRanks
from vit.training.rank_times import Boundary, RankTimes
from vit.training.step import AugmentedBatch, StepRunner

RANKS, MICRO_BATCH, SIDE, LOG_EVERY = 2, 4, 64, 50
MODEL = ModelConfig(image_size=SIDE, patch_size=8, width=192, depth=12, heads=3, mlp_dim=768, num_classes=100)
CHECKS = ChecksConfig(checksum_every_steps=0, recompute_every_steps=0)
CONFIG = Config(global_batch=RANKS * MICRO_BATCH, micro_batch=MICRO_BATCH, model=MODEL, checks=CHECKS)


def calls_of_a_step(times: RankTimes, buckets: int = 4) -> None:
    """What a step calls, on a model with so many buckets of gradients."""
    times.reached(Boundary.BATCH_REQUESTED)
    times.decoded(0.01)
    times.reached(Boundary.BATCH_AUGMENTED)
    times.reached(Boundary.STEP)
    for _ in range(buckets):
        times.reached(Boundary.GRADIENTS)
    for boundary in (Boundary.SUMMED, Boundary.UPDATE, Boundary.UPDATED):
        times.reached(boundary)


def seconds_of_calls(device: torch.device, steps: int) -> float:
    """Per step, with what is done at each LOG_EVERY-th step, but for the collective, which there is anyway."""
    times, slow = RankTimes(World(0, 8, 8, device)), SlowRanks(1.2, 60)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        calls_of_a_step(times)
        if step % LOG_EVERY == 0:
            times.gathered(times.own(device).cpu().expand(8, -1))
            slow.observe(times.take())
    return (time.perf_counter() - began) / steps


def run_rank(rank: int, store: str, steps: int, results: Any) -> None:
    """The main function of a rank.  Rank 0 sends the times of all steps: those that measure, and the others."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    world = World(rank, RANKS, RANKS, torch.device("cpu"))
    runner = StepRunner(RunSchedule(CONFIG, 1000), world, TrainState.fresh(CONFIG, world.device))
    batch = [(torch.randn(MICRO_BATCH, 3, SIDE, SIDE), torch.rand(MICRO_BATCH, 100))]
    samples, seconds = np.arange(MICRO_BATCH), ([], [])  # type: ignore[var-annotated]
    for step in range(2 * steps):
        runner.times.measures = bool(step % 2)
        began = time.perf_counter()
        runner.times.reached(Boundary.BATCH_REQUESTED)
        runner.times.decoded(0.0)
        runner.forward_backward(step, AugmentedBatch(batch, samples, None))
        runner.update(step)
        seconds[step % 2].append(time.perf_counter() - began)
    if rank == 0:
        results.put(seconds)
    dist.destroy_process_group()


def main(args: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a check that it works, in less than a minute")
    quick = parser.parse_args(args).quick
    results = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = multiprocessing.spawn(run_rank, (f"{folder}/store", 10 if quick else 60, results), RANKS, join=False)
        without, measured = results.get()
        while not ranks.join():
            pass
    step = statistics.median(without)
    found: dict[str, Any] = {
        "step_ms": round(1e3 * step, 2),
        "ratio_of_steps": round(statistics.median(a / b for a, b in zip(measured, without, strict=True)), 4),
    }
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        calls = seconds_of_calls(torch.device(device), 1000 if quick else 50_000)
        found |= {f"{device}_calls_us": round(1e6 * calls, 2), f"{device}_share": round(calls / step, 6)}
        print(f"{device}: {1e6 * calls:.1f} µs of each step, {calls / step:.4%} of {1e3 * step:.1f} ms")
    print(f"whole steps with and without: {found['ratio_of_steps']:.4f}")
    print(json.dumps(found))


if __name__ == "__main__":
    run_command(main)
