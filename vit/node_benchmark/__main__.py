"""Measures what a node does for a run: its GPUs, their connection, decoding, some training steps, and a save.

torchrun --nproc-per-node 4 -m vit.node_benchmark --config configs/vit_b16.yaml --folder runs/benchmark

Started by `jobs/doctor.py --submit`.  Each part is appended to FOLDER/parts.jsonl as soon as it is measured.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()
    from vit.distributed.launcher import end_with_launcher

    end_with_launcher()

import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vit.checkpoint.initial_settings import InitialSettings
from vit.config.parser import config_parser, parse_config
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.distributed.launcher import read_place
from vit.distributed.world import World, join_process_group
from vit.model.vision_transformer import VisionTransformer
from vit.node_benchmark import devices
from vit.node_benchmark.sums import measure_sums
from vit.node_benchmark.training import TimedRun
from vit.run.command import print_error, run_command
from vit.run.console import started_as
from vit.run.jsonl import append
from vit.run.output import protect_output

PARTS = "parts.jsonl"


def short_run(cfg: Config) -> Config:
    """The config of the measured run: the same work, without Weights & Biases and without copies of the data sets.

    With `train_sizes` it measures steps at `model.image_size`, in the micro-batches that the rows give them.
    """
    full = [stage.micro_batch for stage in cfg.stages if stage.model.image_size == cfg.model.image_size]
    cache = "os" if cfg.data.cache == "memory" else cfg.data.cache
    return replace(
        cfg,
        init_from="",
        train_sizes=(),
        micro_batch=full[-1] if full else cfg.micro_batch,
        data=replace(cfg.data, stage="", cache=cache),
        log=replace(cfg.log, wandb="off", samples=False),
    )


def measure(cfg: Config, folder: Path, world: World) -> None:
    """Measures all parts.  One that fails is recorded with its error; the rest is then left out."""
    file = folder / PARTS

    def part(name: str, function: Callable[[], dict[str, Any]]) -> None:
        found = function()
        if world.rank == 0:
            append(file, {"part": name, **found}, durable=True)

    part("node", lambda: devices.describe(world))
    part("matrix product", lambda: {"teraflops": round(devices.teraflops(world, cfg.precision), 2)})
    with torch.device("meta"):  # without memory
        weights = sum(p.numel() for p in VisionTransformer(cfg.model).parameters())
    if world.size > 1:
        part("sums", lambda: measure_sums(world, weights))
    run = TimedRun(short_run(cfg), folder / "run", world)
    try:
        part("decoding", run.decode)
        part("training", run.train)
        part("save", run.save)
    finally:
        run.close()


def main(args: list[str] | None = None) -> int:
    """The command line.  Exit code 2 for errors that the user can fix."""
    protect_output(keep_going=True)
    parser = config_parser(started_as("vit.node_benchmark"), (__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=user_path, required=True, help="folder for results and temporary files")
    cfg, options = parse_config(parser, args, InitialSettings())
    folder: Path = options.folder
    rank = None
    try:
        rank = read_place().rank
        folder.mkdir(parents=True, exist_ok=True)
        with join_process_group(cfg) as world:
            measure(cfg, folder, world)
            dist.barrier()
    except Exception as error:
        with suppress(OSError):
            append(folder / PARTS, {"part": "error", "rank": rank, "error": f"{type(error).__name__}: {error}"})
        if not isinstance(error, UserError | OSError):
            traceback.print_exc()
            return 1
        print_error("vit.node_benchmark", error)
        return 2
    finally:
        if not rank:
            shutil.rmtree(folder / "run", ignore_errors=True)
    return 0


if __name__ == "__main__":
    run_command(main, keep_going=True)
