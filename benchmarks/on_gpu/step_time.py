"""Measures training steps of a recipe, with the share of the global batch that one of four GPUs has, without decoding.

python -m benchmarks.on_gpu.step_time vit_b16 [--lever NAME] [--profile FILE] [--steps N] [--setting value …]
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu.checks import ROOT
from benchmarks.on_gpu.levers import LEVERS, Lever
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.data.loader import Batch, _Buffer
from vit.distributed.world import World, join_process_group
from vit.history.utilization import utilization
from vit.training.step import StepRunner, augmented_batches

SHARE = 4  # of the recipe's GPUs one
WARM_UP, ROUND = 6, 6  # steps that are not measured; steps between two looks at the clock
PROFILED_STEPS = 2


def batches(cfg: Config, world: World) -> Iterator[Batch]:
    """Endless random batches that are copied to the device as the loader does it."""
    B, S = cfg.global_batch, cfg.model.image_size
    buffers = [_Buffer(B, S, world.device) for _ in range(4)]
    for buffer in buffers:
        buffer.images.random_(0, 256)
        buffer.labels.random_(0, cfg.model.num_classes)
    for buffer in itertools.cycle(buffers):
        images = buffer.images.to(world.device, non_blocking=True)
        labels = buffer.labels.to(world.device, non_blocking=True)
        buffer.copied.record()
        yield Batch(images, labels, np.zeros(B, np.int64))


KINDS = {  # of kernels, by parts of their names; the first that matches counts
    "compiled": ("triton",),
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "matrix products": ("gemm", "cutlass", "nvjet", "cublas", "xmma"),
    "exchange": ("nccl",),
    "copies": ("memcpy", "memset"),
}


def kernel_ms(profiler: profile, steps: int) -> dict[str, float]:
    """Milliseconds of the GPU in a step, by the kind of kernel; the parts of the roofline in benchmarks/README.md."""
    out: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CUDA:
            continue
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
        out[kind] = out.get(kind, 0.0) + event.self_device_time_total / 1e3 / steps
    return {kind: round(ms, 1) for kind, ms in sorted(out.items())}


class TimedSteps:
    """Steps of a recipe, with the time in which the host launches each of their three parts."""

    def __init__(self, cfg: Config, world: World, lever: Lever | None) -> None:
        self.runner = StepRunner(RunSchedule(cfg, 1_281_167), world, TrainState.fresh(cfg, world.device))
        if lever is not None:
            lever(self.runner)
        self.host: list[tuple[float, float, float]] = []  # seconds of augmentation, gradient and update of each step
        self._batches = augmented_batches(self.runner.schedule, world, batches(cfg, world), 0)

    def run(self, count: int) -> float:
        """Trains some steps, waits for the GPU, and returns the mean milliseconds of a step."""
        began = time.perf_counter()
        for number in range(len(self.host), len(self.host) + count):
            times = [time.perf_counter()]
            batch = next(self._batches)
            times.append(time.perf_counter())
            self.runner.forward_backward(number, batch)
            times.append(time.perf_counter())
            self.runner.update(number)
            times.append(time.perf_counter())
            self.host.append((times[1] - times[0], times[2] - times[1], times[3] - times[2]))
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began) / count


def measure(cfg: Config, steps: int, lever: Lever | None, profile_file: Path | None) -> dict[str, Any]:
    """Trains some steps and returns their figures."""
    with join_process_group(cfg) as world:
        timed = TimedSteps(cfg, world, lever)
        first = timed.run(1) / 1e3
        timed.run(WARM_UP - 1)
        torch.cuda.reset_peak_memory_stats()
        rounds = [timed.run(ROUND) for _ in range((steps - WARM_UP) // ROUND)]
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
        kernels: dict[str, float] = {}
        if profile_file is not None:
            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
                timed.run(PROFILED_STEPS)
            kernels = kernel_ms(profiler, PROFILED_STEPS)
            table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=60, max_name_column_width=110)
            profile_file.write_text(table)
        loss = timed.runner.check_finite()
        ms, name = statistics.median(rounds), torch.cuda.get_device_name()
        share = utilization(cfg.model, cfg.precision, name, 1, 1e3 * cfg.global_batch / ms)
        return {
            "ms": round(ms, 1),
            "spread_percent": round(100 * (max(rounds) - min(rounds)) / ms, 1),
            "images_per_second": round(1e3 * cfg.global_batch / ms),
            "mfu_percent": None if share is None else round(100 * share, 1),
            "peak_gib": round(allocated / 2**30, 2),
            "reserved_gib": round(reserved / 2**30, 2),
            "host_ms_augment_gradient_update": [
                round(1e3 * min(part), 1) for part in zip(*timed.host[WARM_UP:], strict=True)
            ],
            **({"kernel_ms": kernels} if kernels else {}),
            "first_step_seconds": round(first, 1),
            "loss": loss[0] if loss else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("--lever", choices=LEVERS)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    options, settings = parser.parse_known_args()
    cfg = load_config(ROOT / f"configs/{options.recipe}.yaml", *settings)
    cfg = replace(cfg, global_batch=cfg.global_batch // SHARE)
    lever = LEVERS[options.lever] if options.lever else None
    name = " ".join([options.recipe, *settings, *filter(None, [options.lever])])
    try:
        figures = measure(cfg, options.steps, lever, options.profile)
    except torch.OutOfMemoryError as error:
        figures = {"out_of_memory": str(error)[:200]}
    print(json.dumps({"name": name, "images_per_step": cfg.global_batch} | figures))


if __name__ == "__main__":
    sys.exit(main())
