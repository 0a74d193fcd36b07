"""Finds the fastest micro-batch of a config by trying some steps of each that fits: `vit.train --find-micro-batch`."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from vit.checkpoint.train_state import TrainState
from vit.config.batches import wrong_ranks
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.config.values import format_list
from vit.data.loader import Batch
from vit.distributed.launcher import read_place
from vit.distributed.world import World, device_name, join_process_group, pick_device
from vit.run.counts import counted
from vit.training.gpu_memory import is_allowed, step_bytes
from vit.training.step import StepRunner, augmented_batches

WARM_UP, SECONDS, MOST_STEPS = 2, 4.0, 50  # steps before the measured ones; how long these take, and their number
MARGIN = 1.15  # the estimate of the memory may be too high by this factor
SLOWER = 2  # the search ends after so many smaller micro-batches that are not faster

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Trial:
    """What some steps of one rank needed."""

    images_per_second: float  # of this rank
    gpu_bytes: int  # the most that torch held of the GPU; 0 on CPUs


def find_micro_batch(cfg: Config, ranks: int) -> None:
    """Prints a table for each image size of the config, then the best settings for a run on so many ranks.

    Raises UserError if this process is one of several, or if there is no micro-batch for these ranks.
    """
    if read_place().size > 1:
        raise UserError("--find-micro-batch measures one rank: start it without torchrun, as a single process")
    if ranks < 1:
        raise UserError(f"--find-micro-batch must be a number of ranks, at least 1, not {ranks}")
    if cfg.global_batch % ranks:
        raise UserError(wrong_ranks(cfg.global_batch, cfg.micro_batch, ranks))
    device, memory = _in_new_process(_device, cfg)
    of = f" of {memory / 2**30:.1f} GiB" if memory else ""
    print(f"micro-batches for {counted(ranks, 'rank')}, measured on one: {device}{of}", flush=True)
    sizes = {stage.model.image_size: stage for stage in cfg.stages}
    best = {side: _search(stage, ranks, memory) for side, stage in sizes.items()}
    if None in best.values():
        less = "" if cfg.activation_checkpointing else ", or --activation_checkpointing true"
        raise UserError(f"no micro-batch fits into the memory of this GPU: use more ranks or a smaller model{less}")
    if cfg.train_sizes:
        rows = format_list([(*row[:2], best[int(row[1])]) for row in cfg.train_sizes])
        option = f'--train_sizes "{rows}"'
    else:
        option = f"--micro_batch {best[cfg.model.image_size]}"
    print(f"fastest: {option}")
    print("The micro-batch is part of the recipe: another one gives other bits. Choose it before a run begins.")


def _search(cfg: Config, ranks: int, memory: int) -> int | None:
    """Tries micro-batches from large to small, and prints a line for each; returns the fastest, None if none fits."""
    print(f"{cfg.model.image_size} pixels:\n{'micro-batch':>15}{'GiB':>10}{'images/s':>12}", flush=True)
    best, best_rate, slower = None, 0.0, 0
    for micro_batch in _candidates(cfg, ranks, memory):
        trial = _in_new_process(try_micro_batch, _of_one_rank(cfg, micro_batch, ranks))
        if trial is None:
            print(f"{micro_batch:>15,}   does not fit", flush=True)
            continue
        gib = f"{trial.gpu_bytes / 2**30:.1f}" if trial.gpu_bytes else "-"
        print(f"{micro_batch:>15,}{gib:>10}{trial.images_per_second:>12,.1f}", flush=True)
        if trial.images_per_second > best_rate:
            best, best_rate, slower = micro_batch, trial.images_per_second, 0
        else:
            slower += 1
        if slower == SLOWER:
            break
    return best


def _candidates(cfg: Config, ranks: int, memory: int) -> Iterator[int]:
    """The micro-batches that a run on so many ranks accepts and that may fit into the memory, from large to small."""
    for micro_batch in range(cfg.global_batch // ranks, 0, -1):
        may_fit = not memory or step_bytes(cfg, micro_batch, ranks) < MARGIN * memory
        if may_fit and is_allowed(cfg, micro_batch, ranks):
            yield micro_batch


def _of_one_rank(cfg: Config, micro_batch: int, ranks: int) -> Config:
    """A run on one rank that does in each step what one of the `ranks` does."""
    data = replace(cfg.data, repeats=1)  # without a data set; mixup then takes the same time
    return replace(cfg, global_batch=cfg.global_batch // ranks, micro_batch=micro_batch, data=data, init_from="")


def _in_new_process(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Calls a function in a process of its own: when that ends, all memory of the GPU is free again."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            raise UserError("the process that tried a micro-batch was killed: too little memory of the node?") from None


def _device(cfg: Config) -> tuple[str, int]:
    """Name and memory in bytes of the device; 0 for a CPU, whose memory is not estimated."""
    device = pick_device(cfg.device)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return device_name(device), memory


def try_micro_batch(cfg: Config) -> Trial | None:
    """Runs steps on random images, with augmentation, update and EMA; None if the GPU's memory is too small."""
    try:
        with join_process_group(cfg) as world:
            return _measure(cfg, world)
    except torch.OutOfMemoryError:
        return None


def _measure(cfg: Config, world: World) -> Trial:
    state, schedule = TrainState.fresh(cfg, world.device), RunSchedule(cfg, samples=10**6)
    runner = StepRunner(schedule, world, state)
    batches = augmented_batches(schedule, world, _random_batches(cfg, world), 0)

    def seconds_of(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            runner.forward_backward(state.step, next(batches))
            runner.update(state.step)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds_of(WARM_UP)
    steps = max(2, min(MOST_STEPS, int(SECONDS / seconds_of(1))))
    rate = steps * cfg.global_batch / seconds_of(steps)
    return Trial(rate, torch.cuda.max_memory_reserved() if world.device.type == "cuda" else 0)


def _random_batches(cfg: Config, world: World) -> Iterator[Batch]:
    """The same random images again and again, which are copied to the device each time as the loader's are."""
    random, side = torch.Generator().manual_seed(0), cfg.model.image_size
    images = torch.randint(0, 256, (cfg.global_batch, side, side, 3), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, cfg.model.num_classes, (cfg.global_batch,), generator=random)
    if world.device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    for _ in itertools.count():
        moved = images.to(world.device, non_blocking=True), labels.to(world.device, non_blocking=True)
        yield Batch(*moved, np.zeros(cfg.global_batch, np.int64))
