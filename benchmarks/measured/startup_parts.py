"""The parts of a start, each measured alone, for startup.py: in a new process, or in a fork of the job's fork server.

`python -m benchmarks.measured.startup_parts --config FILE --run-dir DIR …` takes the options of `python -m vit.train`.
It does the same work up to the first step with the same functions, one part after the other, without a trainer: no
ledger, learning curve, supervision or saves.  Prints one JSON object: seconds and processor seconds of each part.
"""

import importlib
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vit.run.garbage_collection import pause_collection, resume_collection

if TYPE_CHECKING:
    from vit.config.schema import Config
    from vit.distributed.world import World
    from vit.run.folder import RunFolder

ASKED_VARIABLE = "STARTUP_ASKED"  # time.time() at which this process was asked for
STEPS = 6  # the first is the first use of graphs and kernels; the others are the steps that count, without the second


class Parts:
    """Seconds and processor seconds of each part, in their order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures a block."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - wall
        self.processor_seconds[name] = time.process_time() - processor


def main(arguments: list[str] | None = None) -> None:
    """Measures all parts; to be called first in a process."""
    parts = Parts()
    forked = "torch" in sys.modules
    parts.seconds["fork" if forked else "Python"] = time.time() - float(os.environ[ASKED_VARIABLE])
    parts.processor_seconds["fork" if forked else "Python"] = time.process_time()
    if not forked:
        _measure_imports(parts)
    _measure_start(parts, sys.argv[1:] if arguments is None else arguments)
    print(json.dumps({"seconds": parts.seconds, "processor_seconds": parts.processor_seconds}), flush=True)
    os._exit(0)  # nothing is left to do; a normal exit takes as long as some parts


def _measure_imports(parts: Parts) -> None:
    pause_collection()  # as the command does
    with parts.part("import torch"):
        importlib.import_module("torch")
    with parts.part("import torch._dynamo"):  # DDP and torch's optimizers need it
        importlib.import_module("torch._dynamo")
    with parts.part("other imports"):
        importlib.import_module("vit.train")
    resume_collection()


def _measure_start(parts: Parts, arguments: list[str]) -> None:
    from vit.config.parser import config_parser, parse_config
    from vit.config.paths import user_path
    from vit.distributed.world import join_process_group
    from vit.run.folder import RunFolder

    with parts.part("config"):
        parser = config_parser("startup_parts")
        parser.add_argument("--run-dir", type=user_path)
        cfg, options = parse_config(parser, arguments)
    with parts.part("process group"):
        group = join_process_group(cfg)
        world = group.__enter__()
    if cfg.compile and "torch._inductor.compile_fx" not in sys.modules:
        with parts.part("import the compiler"):
            importlib.import_module("torch._inductor.compile_fx")
    _measure_steps(parts, cfg, world, RunFolder(options.run_dir))


def _measure_steps(parts: Parts, cfg: "Config", world: "World", run: "RunFolder") -> None:
    import torch

    from vit.checkpoint.format import find_checkpoints
    from vit.checkpoint.load import load_checkpoint
    from vit.checkpoint.train_state import TrainState
    from vit.data.loader import TrainData, ValData
    from vit.training.compile_cache import CompileCache
    from vit.training.step import StepRunner, augmented_batches

    synchronize = torch.cuda.synchronize if world.device.type == "cuda" else lambda: None
    checkpoints = find_checkpoints(run.checkpoints)
    with parts.part("data"):
        data, _ = TrainData(cfg, world), ValData(cfg, world)
        batches = data.batches(0, STEPS)
        first = next(batches)
    with parts.part("model"):
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(data.schedule, world, state)
        synchronize()
    if checkpoints:
        with parts.part("checkpoint"):
            tensors, manifest = load_checkpoint(checkpoints[0])
            state.restore(manifest["step"], tensors, manifest["about"])
            synchronize()
    with parts.part("graphs"):
        if cfg.compile:
            CompileCache(run, world)
    walls, processors = [], []
    augmented = augmented_batches(data.schedule, world, itertools.chain([first], batches), 0)
    for step in range(STEPS):
        wall, processor = time.perf_counter(), time.process_time()
        batch = next(augmented)
        runner.forward_backward(step, batch)
        runner.update(step)
        runner.check_finite()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    for seconds, each in ((parts.seconds, walls), (parts.processor_seconds, processors)):
        seconds["step"] = statistics.median(each[2:])
        seconds["graphs"] += each[0] - seconds["step"]


if __name__ == "__main__":
    main()
