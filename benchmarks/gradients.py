"""The fixed-order sum of gradients against DDP's own all-reduce: whole training steps on four ranks, in one run.

python benchmarks/gradients.py [--quick]

Four processes train a model in each way, one step after the other in turns: forward, backward with the sum over the
ranks, clipping, AdamW.  Two steps side by side give a ratio, and the median of the ratios counts: other users of a
machine disturb single steps.  Beside it stands the ratio of the processor time that all ranks took, which says as much
where there are fewer cores than ranks, and is disturbed less.  Ranks have few images, of 64 x 64 pixels, so that the
sums, which are as large as for any image, weigh more than they do in training.  The last line is one JSON object with
all figures.
"""

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

from vit.config.schema import ModelConfig, OptimConfig
from vit.distributed.gradients import MicroBatchGradients
from vit.distributed.world import World
from vit.model.vision_transformer import VisionTransformer
from vit.optim.optimizer import build_optimizer

RANKS, IMAGES, SIDE = 4, 4, 64  # images of a micro-batch, pixels of a side
WAYS = {"bits": "fixed order", "samples": "exact: samples", "ddp": "DDP's own"}
MODELS = {
    "ViT-Ti/8": ModelConfig(image_size=SIDE, patch_size=8, width=192, heads=3, mlp_dim=768),
    "ViT-S/8": ModelConfig(image_size=SIDE, patch_size=8, width=384, heads=6, mlp_dim=1536),
}


def stock(model: nn.Module, micro_batches: int, loss: Callable[[nn.Module, int], torch.Tensor]) -> Callable[[], None]:
    """Forward and backward as DDP's users write it."""
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def run() -> None:
        ddp.zero_grad()
        with ddp.no_sync():
            for j in range(micro_batches - 1):
                (loss(ddp, j) / micro_batches).backward()
        (loss(ddp, micro_batches - 1) / micro_batches).backward()

    return run


def ours(
    model: nn.Module, micro_batches: int, loss: Callable[[nn.Module, int], torch.Tensor], world: World, exact: Any
) -> Callable[[], None]:
    """Forward and backward as `vit.train` has it."""
    gradients = MicroBatchGradients(model, world, exact)

    def run() -> None:
        for j in range(micro_batches):
            with gradients.micro_batch(j, micro_batches):
                (loss(gradients.model, j) / (micro_batches * world.size)).backward()

    return run


def training(way: str, name: str, micro_batches: int, world: World) -> Callable[[], None]:
    """A function that does one step, of `micro-batches` micro-batches on this rank."""
    torch.manual_seed(0)
    model = VisionTransformer(MODELS[name])
    images, labels = torch.randn(micro_batches, IMAGES, 3, SIDE, SIDE), torch.randint(1000, (micro_batches, IMAGES))
    optimizer = build_optimizer(model, OptimConfig())

    def loss(model: nn.Module, j: int) -> torch.Tensor:
        return F.cross_entropy(model(images[j]), labels[j])

    backward = stock(model, micro_batches, loss) if way == "ddp" else ours(model, micro_batches, loss, world, way)

    def step() -> None:
        backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def be_rank(rank: int, store: str, jobs: list[tuple[str, int]], seconds: float, answers: Any) -> None:
    """One process; rank 0 answers with the seconds of each step of each way, and all ranks' of processors."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    world = World(rank=rank, size=RANKS, local_size=RANKS, device=torch.device("cpu"))
    for name, micro_batches in jobs:
        steps = {way: training(way, name, micro_batches, world) for way in WAYS}
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        started, rounds, enough = time.monotonic(), 0, torch.zeros(1)
        while not enough:
            for way in list(WAYS)[:: 1 if rounds % 2 else -1]:
                dist.barrier()
                begin, processor = time.perf_counter(), time.process_time()
                steps[way]()
                busy = torch.tensor([time.process_time() - processor], dtype=torch.float64)
                dist.barrier()
                wall = time.perf_counter() - begin
                dist.all_reduce(busy)
                taken[way].append((wall, float(busy)))
            rounds += 1
            enough += rounds >= 5 and time.monotonic() - started > seconds
            dist.broadcast(enough, 0)
        if rank == 0:
            answers.put({way: values[2:] for way, values in taken.items()})  # the first builds DDP's buckets anew
    dist.destroy_process_group()


def compare(models: list[str], seconds: float) -> dict[str, Any]:
    """All figures: each model with one and two micro-batches a rank, for this long each."""
    jobs = [(name, micro_batches) for name in models for micro_batches in (1, 2)]
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    rows, ratios, busier = [], [], []
    names = (*WAYS.values(), "fixed order", "its processors")
    print(f"{'ms a step, on four ranks':<26}" + "".join(f"{name:>16}" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        ranks = multiprocessing.spawn(be_rank, (f"{folder}/store", jobs, seconds, answers), RANKS, join=False)
        for name, micro_batches in jobs:
            taken = answers.get()
            ms = {way: round(1000 * statistics.median(t for t, _ in values), 1) for way, values in taken.items()}
            more, busy = ([a[i] / b[i] - 1 for a, b in zip(taken["bits"], taken["ddp"], strict=True)] for i in range(2))
            ratios += more
            busier += busy
            rows.append({"model": name, "shards_of_a_rank": micro_batches, "ms": ms, "steps": len(more)})
            rows[-1] |= {"overhead": round(statistics.median(more), 4), "processors": round(statistics.median(busy), 4)}
            shares = f"{rows[-1]['overhead']:>+16.1%}{rows[-1]['processors']:>+16.1%}"
            print(
                f"{f'{name}, {micro_batches} x {IMAGES} images':<26}"
                + "".join(f"{t:>16,.1f}" for t in ms.values())
                + shares
            )
        while not ranks.join():
            pass
    return {
        "sum_overhead": round(statistics.median(ratios), 4),
        "sum_overhead_processors": round(statistics.median(busier), 4),
        "steps": len(ratios),
        "rows": rows,
    }


def main() -> None:
    """Prints a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 50 seconds, the smaller model only")
    options = parser.parse_args()
    figures = compare(["ViT-Ti/8"], 11) if options.quick else compare(list(MODELS), 90)
    print(json.dumps(figures | {"ranks": RANKS, "cores": os.cpu_count(), "machine": platform.machine()}))


if __name__ == "__main__":
    main()
