"""What a comparison of the ranks' states costs, beside the training steps of one rank.

    python benchmarks/checksums.py [--quick]

Steps of models on random images, and between them the checksums that a comparison computes: weights, optimizer state,
EMA.  `share` is their time over that of as many steps as lie between two comparisons, `checks.checksum_every_steps`,
with as few images for each step as are measured here; steps of a real run have more, and are longer.  On a CPU, which
others may use too, it is processor time.  What a comparison sends is a part of a message that is sent anyway: 24 bytes
for each rank.  The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.measured.machine import gpu_name, machine, save_figures
from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ChecksConfig, ModelConfig, OptimConfig
from vit.distributed.world import World, join_process_group
from vit.integrity.checksums import kind_checksums
from vit.run.command import run_command
from vit.training.step import AugmentedBatch, StepRunner

MODELS = {
    "ViT-Ti/16": ModelConfig(width=192, depth=12, heads=3, mlp_dim=768),
    "ViT-S/16": ModelConfig(width=384, depth=12, heads=6, mlp_dim=1536),
    "ViT-B/16": ModelConfig(),
}
IMAGES = {"cpu": 8, "cuda": 256}  # of a rank in a step


def seconds(world: World) -> float:
    """Processor time; on a GPU the time at which it has done everything."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(model: ModelConfig, images: int, steps: int) -> dict[str, Any]:
    """Medians over some steps, each followed by a comparison's checksums."""
    precision: Any = "bf16" if gpu_name() else "float32"
    cfg = Config(model=model, global_batch=images, micro_batch=images, precision=precision, compile=False)
    cfg = replace(cfg, optim=OptimConfig(ema_decay=0.999))
    trained, compared = [], []
    with join_process_group(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(RunSchedule(cfg, samples=1_281_167), world, state)
        pixels = torch.randn(images, 3, model.image_size, model.image_size, device=world.device)
        targets = torch.rand(images, model.num_classes, device=world.device).softmax(1)
        for step in range(steps + 1):
            times = [seconds(world)]
            runner.forward_backward(step, AugmentedBatch([(pixels, targets)], np.arange(images), None))
            runner.update(step)
            times.append(seconds(world))
            kind_checksums(state.compared_tensors(), world.device)
            times.append(seconds(world))
            runner.discard_unchecked()
            trained.append(times[1] - times[0])
            compared.append(times[2] - times[1])
        size = sum(tensor.nbytes for tensor in state.compared_tensors().values())
    step_s, checksums_s = statistics.median(trained[1:]), statistics.median(compared[1:])
    share = checksums_s / (ChecksConfig().checksum_every_steps * step_s)
    return {"mb": size / 1e6, "images": images, "step_s": step_s, "checksums_s": checksums_s, "share": share}


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="less than 50 s: the smallest model, fewer images, 2 steps"
    )
    options = parser.parse_args()
    every, rows = ChecksConfig().checksum_every_steps, {}
    print(f"{'':<12}{'MB':>8}{'images':>8}{'step, ms':>10}{'checksums, ms':>15}{f'share, every {every} steps':>26}")
    for name, model in list(MODELS.items())[: 1 if options.quick else None]:
        images = 4 if options.quick else IMAGES["cuda" if gpu_name() else "cpu"]
        row = measure(model, images, 2 if options.quick else 5)
        times = f"{1e3 * row['step_s']:>10,.1f}{1e3 * row['checksums_s']:>15.2f}"
        print(f"{name:<12}{row['mb']:>8,.0f}{images:>8}{times}{row['share']:>26.4%}", flush=True)
        rows[name] = {key: round(value, 7) for key, value in row.items()}
    figures = {"share": max(row["share"] for row in rows.values()), "models": rows, "machine": machine()}
    if not options.quick:
        save_figures("checksums", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
