"""Training steps of a recipe at its own size on one of its GPUs, without decoding: launches, copies and memory."""

import time
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.on_gpu.levers import LEVERS, Lever
from tests.helpers import graph_bytes, null_gpu_counts
from tests.helpers.graph_bytes import GraphBytes
from tests.helpers.null_gpu import Card
from tests.helpers.null_gpu_ranks import NullGpu
from tests.helpers.paths import CONFIGS
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.data.loader import Batch, _Buffer
from vit.distributed.world import World, join_process_group
from vit.training.step import StepRunner, augmented_batches

IMAGES = 1_281_167  # in ImageNet's training set
GPUS = {"finetune": 1}  # as in the command at the head of its config; all others: 4
DATA = {"finetune": ("--model.num_classes", "2")}  # cats and dogs; all others: ImageNet
CARDS: dict[Card, Literal[40, 80]] = {"a100": 40, "h100": 80}  # each with its memory in GB
WARM_UP = 11  # steps until all is compiled and allocated; in the first ten, DDP measures times, and waits for them
STEPS = 4  # that are counted; the draws of the augmentation differ from step to step, but not from run to run
GIB = 2**30
HOST_FIGURES = ("host_ms", "compiled_gb")


def count(null_gpu: NullGpu, recipe: str, card: Card, *settings: str) -> dict[str, Any]:
    """The figures of a recipe, with other settings if given, on one of its GPUs; see `count_steps`."""
    arguments, ranks = (recipe, None, *settings), GPUS.get(recipe, 4)
    figures = null_gpu.run(count_steps, *arguments, ranks=ranks, card=card, memory_gb=CARDS[card], timeout=600)[0]
    assert isinstance(figures, dict)
    return {name: value for name, value in figures.items() if name not in HOST_FIGURES}


def count_lever(null_gpu: NullGpu, recipe: str, lever: str | None, *settings: str) -> dict[str, Any]:
    """The figures of a recipe on one H100 with a changed code or changed settings; see `count_steps`."""
    arguments = (recipe, lever, *settings)
    figures = null_gpu.run(count_steps, *arguments, ranks=4, card="h100", memory_gb=80, timeout=900)[0]
    assert isinstance(figures, dict)
    return figures


def count_steps(recipe: str, lever: str | None, *settings: str) -> dict[str, Any] | None:
    """Runs steps on rank 0 and returns its figures per step; the other ranks only join the process group.

    `fits` is false if the GPU's memory is too small; `retries` counts how often torch had to return memory to the
    driver to get some, which waits for the GPU; `waits` are all other waits.  `host_ms` is the least processor time
    of a step, `compiled_gb` what the compiler says that its kernels read and write; matrix products and attention,
    which it only calls, are not included.
    """
    cfg = load_config(CONFIGS / f"{recipe}.yaml", "--device", "cuda", *DATA.get(recipe, ()), *settings)
    moved = graph_bytes.watch()
    with join_process_group(cfg) as world:
        if world.rank > 0:
            return None
        try:
            host = _run_steps(cfg, world, LEVERS[lever] if lever else None, moved)
        except torch.OutOfMemoryError:
            return {"fits": False}
        counts = null_gpu_counts.read()
        launches = counts.launches_by_stream()
        memory = torch.cuda.memory_stats()
    return {
        "fits": True,
        "images": cfg.global_batch // world.size,
        "micro_batches": cfg.micro_batches // world.size,
        "launches": round(launches.total() / STEPS),
        "launches_augmentation": round(max(n for name, n in launches.items() if name != "stream 0") / STEPS),
        "waits": counts.synchronizations.total() / STEPS,
        "allocated_gib": round(memory["allocated_bytes.all.peak"] / GIB, 2),
        "reserved_gib": round(memory["reserved_bytes.all.peak"] / GIB, 2),
        "retries": memory["num_alloc_retries"],
        "host_ms": round(1e3 * min(host), 1),
        "compiled_gb": round(moved.total / STEPS / 1e9, 1) if moved.total else None,
    }


def _run_steps(cfg: Config, world: World, lever: Lever | None, moved: GraphBytes) -> list[float]:
    """Runs the steps; counts all but the first ones, but the memory of all.  Returns their processor times."""
    state = TrainState.fresh(cfg, world.device)
    runner = StepRunner(RunSchedule(cfg, IMAGES), world, state)
    if lever is not None:
        lever(runner)
    batches = augmented_batches(runner.schedule, world, undecoded_batches(cfg, world), 0)
    null_gpu_counts.watch()
    times = []
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            null_gpu_counts.reset()
            moved.total = 0
        began = time.process_time()
        runner.forward_backward(step, next(batches))
        runner.update(step)
        times.append(time.process_time() - began)
    return times[WARM_UP:]


def undecoded_batches(cfg: Config, world: World) -> Iterator[Batch]:
    """The batches of `BatchReader`, in its buffers, but without decoded images."""
    size = cfg.global_batch // world.size
    buffers = [_Buffer(size, cfg.model.image_size, world.device) for _ in range(cfg.data.prefetch + 1)]
    while True:
        for buffer in buffers:
            images, labels = (t.to(world.device, non_blocking=True) for t in (buffer.images, buffer.labels))
            yield Batch(images, labels, np.zeros(size, np.int64))
