"""Cost of our fixed-order gradient sum compared with DDP's all-reduce, in whole training steps on four ranks.

python benchmarks/gradients.py [--quick]

Four processes train a model with each method, alternating between the methods at every step: forward, backward with
the sum over all ranks, gradient clipping, AdamW.  The result is the median ratio of the times of neighboring steps,
because other load on the machine disturbs single steps.  The ratio of CPU times over all ranks is reported too: it is
disturbed less, and is meaningful also with fewer cores than ranks.  Ranks have few images of only 64 x 64 pixels.  The
size of the sum does not depend on them, so it has a larger share of a step than in real training.  The last line is one
JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from vit.config.sections import ModelConfig, OptimConfig
from vit.distributed.gradients import MicroBatchGradients
from vit.distributed.world import World
from vit.model.vision_transformer import VisionTransformer
from vit.optim.optimizer import build_optimizer
from vit.run.command import run_command

RANKS, IMAGES, SIDE = 4, 4, 64  # ranks, images per micro-batch, pixels per side
METHODS = {"bits": "exact: bits", "samples": "exact: samples", "ddp": "DDP"}
MODELS = {
    "ViT-Ti/8": ModelConfig(image_size=SIDE, patch_size=8, width=192, heads=3, mlp_dim=768),
    "ViT-S/8": ModelConfig(image_size=SIDE, patch_size=8, width=384, heads=6, mlp_dim=1536),
}


def ddp_backward(
    model: nn.Module, micro_batches: int, loss: Callable[[nn.Module, int], torch.Tensor]
) -> Callable[[], None]:
    """Forward and backward with gradient accumulation, as DDP's documentation recommends."""
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def run() -> None:
        ddp.zero_grad()
        with ddp.no_sync():
            for j in range(micro_batches - 1):
                (loss(ddp, j) / micro_batches).backward()
        (loss(ddp, micro_batches - 1) / micro_batches).backward()

    return run


def our_backward(
    model: nn.Module, micro_batches: int, loss: Callable[[nn.Module, int], torch.Tensor], world: World, exact: Any
) -> Callable[[], None]:
    """Forward and backward as in `vit.train`."""
    gradients = MicroBatchGradients(model, world, exact)

    def run() -> None:
        for j in range(micro_batches):
            with gradients.micro_batch(j, micro_batches):
                (loss(gradients.model, j) / (micro_batches * world.size)).backward()

    return run


def make_step(method: str, name: str, micro_batches: int, world: World) -> Callable[[], None]:
    """Returns a function that runs one training step of `micro_batches` micro-batches on this rank."""
    torch.manual_seed(0)
    model = VisionTransformer(MODELS[name])
    images, labels = torch.randn(micro_batches, IMAGES, 3, SIDE, SIDE), torch.randint(1000, (micro_batches, IMAGES))
    optimizer = build_optimizer(model, OptimConfig())

    def loss(model: nn.Module, j: int) -> torch.Tensor:
        return F.cross_entropy(model(images[j]), labels[j])

    if method == "ddp":
        backward = ddp_backward(model, micro_batches, loss)
    else:
        backward = our_backward(model, micro_batches, loss, world, method)

    def step() -> None:
        backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def run_rank(rank: int, store: str, jobs: list[tuple[str, int]], seconds: float, results: Any) -> None:
    """The main function of a rank.  Rank 0 sends the wall time and the CPU time over all ranks of every step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    world = World(rank=rank, size=RANKS, local_size=RANKS, device=torch.device("cpu"))
    for name, micro_batches in jobs:
        steps = {method: make_step(method, name, micro_batches, world) for method in METHODS}
        times: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
        started, rounds, done = time.monotonic(), 0, torch.zeros(1)
        while not done:
            for method in list(METHODS)[:: 1 if rounds % 2 else -1]:
                dist.barrier()
                wall_start, cpu_start = time.perf_counter(), time.process_time()
                steps[method]()
                cpu = torch.tensor([time.process_time() - cpu_start], dtype=torch.float64)
                dist.barrier()
                wall = time.perf_counter() - wall_start
                dist.all_reduce(cpu)
                times[method].append((wall, float(cpu)))
            rounds += 1
            done += rounds >= 5 and time.monotonic() - started > seconds
            dist.broadcast(done, 0)
        if rank == 0:
            results.put({method: values[2:] for method, values in times.items()})  # DDP rebuilds its buckets at first
    dist.destroy_process_group()


def compare(models: list[str], seconds: float) -> dict[str, Any]:
    """Measures each model with one and two micro-batches per rank, `seconds` each; returns all figures."""
    jobs = [(name, micro_batches) for name in models for micro_batches in (1, 2)]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    rows, wall_overheads, cpu_overheads = [], [], []
    columns = (*METHODS.values(), "bits vs DDP", "its CPU time")
    print(f"{'ms per step on four ranks':<26}" + "".join(f"{column:>16}" for column in columns))
    with tempfile.TemporaryDirectory() as folder:
        ranks = multiprocessing.spawn(run_rank, (f"{folder}/store", jobs, seconds, results), RANKS, join=False)
        for name, micro_batches in jobs:
            times = results.get()
            ms = {method: round(1000 * statistics.median(t for t, _ in values), 1) for method, values in times.items()}
            wall, cpu = ([a[i] / b[i] - 1 for a, b in zip(times["bits"], times["ddp"], strict=True)] for i in range(2))
            wall_overheads += wall
            cpu_overheads += cpu
            row = {"model": name, "shards_of_a_rank": micro_batches, "ms": ms, "steps": len(wall)}
            row |= {"overhead": round(statistics.median(wall), 4), "processors": round(statistics.median(cpu), 4)}
            rows.append(row)
            cells = "".join(f"{t:>16,.1f}" for t in ms.values())
            overheads = f"{row['overhead']:>+16.1%}{row['processors']:>+16.1%}"
            print(f"{f'{name}, {micro_batches} x {IMAGES} images':<26}" + cells + overheads)
        while not ranks.join():
            pass
    return {
        "sum_overhead": round(statistics.median(wall_overheads), 4),
        "sum_overhead_processors": round(statistics.median(cpu_overheads), 4),
        "steps": len(wall_overheads),
        "rows": rows,
    }


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds, with the smaller model only")
    options = parser.parse_args()
    figures = compare(["ViT-Ti/8"], 11) if options.quick else compare(list(MODELS), 90)
    print(json.dumps(figures | {"ranks": RANKS, "cores": os.cpu_count(), "machine": platform.machine()}))


if __name__ == "__main__":
    run_command(main)
