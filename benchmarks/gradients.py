"""The fixed-order sum of gradients against DDP's own all-reduce: whole training steps on four ranks, in one run.

python benchmarks/gradients.py [--quick]

Four processes hold one model each way and train them in turns, a few steps of one, a few of the other: forward,
backward with the sum over the ranks, clipping, AdamW.  A round is one turn of each; the median of all rounds' ratios
counts, because other users of a machine disturb single rounds.  The last line is one JSON object with all figures.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from vit.config import ModelConfig, OptimConfig
from vit.gradients import ShardedGradients
from vit.model import VisionTransformer
from vit.optim import adamw
from vit.world import World

RANKS = 4
WAYS = {
    "bits": "the fixed-order sum",
    "samples": "exact: samples",
    "ddp": "DDP's own all-reduce",
}
MODELS = {  # images of 64 x 64 keep a step short; the gradients are as large as at 224 x 224
    "ViT-Ti/8": ModelConfig(image_size=64, patch_size=8, width=192, heads=3, mlp_dim=768),
    "ViT-S/8": ModelConfig(image_size=64, patch_size=8, width=384, heads=6, mlp_dim=1536),
}


def training(way: str, model: VisionTransformer, world: World, micro: int, shards: int) -> Callable[[], None]:
    """A function that does one step, of `shards` micro-batches on this rank."""
    images = torch.randn(shards, micro, 3, 64, 64)
    labels = torch.randint(1000, (shards, micro))
    optimizer = adamw(model, OptimConfig())
    ours = ShardedGradients(model, world, "samples" if way == "samples" else "bits") if way != "ddp" else None
    stock = DistributedDataParallel(model, gradient_as_bucket_view=True) if ours is None else None

    def step() -> None:
        if stock is not None:
            optimizer.zero_grad()
        for j in range(shards):
            if ours is not None:
                with ours.shard(j, shards):
                    (F.cross_entropy(ours.model(images[j]), labels[j]) / (shards * world.size)).backward()
            else:
                stock.require_backward_grad_sync = j == shards - 1  # what no_sync() sets
                (F.cross_entropy(stock(images[j]), labels[j]) / shards).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def rank(number: int, store: str, jobs: list[dict[str, Any]], answers: Any) -> None:
    """One process: the seconds of each turn of each way, for each job."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=RANKS)
    world = World(rank=number, size=RANKS, local_size=RANKS, device=torch.device("cpu"))
    for job in jobs:
        steps = {}
        for way in WAYS:
            torch.manual_seed(0)
            steps[way] = training(way, VisionTransformer(MODELS[job["model"]]), world, job["micro"], job["shards"])
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        started, i = time.monotonic(), 0
        while True:
            ways = list(WAYS)[:: 1 if i % 2 else -1]
            for way in ways:
                dist.barrier()
                begin = time.perf_counter()
                for _ in range(job["turn"]):
                    steps[way]()
                dist.barrier()
                if i >= 2:  # the first builds DDP's buckets, the second uses them
                    seconds[way].append((time.perf_counter() - begin) / job["turn"])
            i += 1
            enough = [i >= 5 and time.monotonic() - started > job["seconds"]]
            dist.broadcast_object_list(enough)
            if enough[0]:
                break
        if number == 0:
            answers.put((job, seconds))
    dist.barrier()
    dist.destroy_process_group()


def compare(seconds: float, turn: int) -> dict[str, Any]:
    """Figures of each model and number of shards."""
    import tempfile

    jobs = [
        {"model": model, "micro": micro, "shards": shards, "seconds": seconds, "turn": turn}
        for model in MODELS
        for micro, shards in ((8, 1), (8, 2))
    ]
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes = multiprocessing.spawn(rank, (f"{folder}/store", jobs, answers), RANKS, join=False)
        rows = []
        for _ in jobs:
            job, measured = answers.get()
            ratios = {
                way: [ours / ddp for ours, ddp in zip(measured[way], measured["ddp"], strict=True)] for way in WAYS
            }
            rows.append(
                {
                    "model": job["model"],
                    "images_of_a_rank": job["micro"] * job["shards"],
                    "shards_of_a_rank": job["shards"],
                    "ms": {way: round(1000 * statistics.median(s), 1) for way, s in measured.items()},
                    "overhead": {w: round(statistics.median(ratios[w]) - 1, 4) for w in ("bits", "samples")},
                    "rounds": len(ratios["bits"]),
                }
            )
            print(rows[-1])
        while not processes.join():
            pass
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    options = parser.parse_args()
    figures = compare(6, 1) if options.quick else compare(60, 1)
    figures["sum_overhead"] = round(
        math.exp(statistics.fmean(math.log1p(r["overhead"]["bits"]) for r in figures["rows"])) - 1, 4
    )
    print(json.dumps(figures | {"ranks": RANKS, "cores": os.cpu_count(), "machine": platform.machine()}))


if __name__ == "__main__":
    main()
