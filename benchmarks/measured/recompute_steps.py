"""Training steps of one recipe, every other of which recomputes a micro-batch, for recompute.py.

python -m benchmarks.measured.recompute_steps --config FILE --steps N [--setting value …]

The last line is one JSON object.
"""

import itertools
import json
import statistics
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from vit.checkpoint.train_state import TrainState
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config
from vit.data.loader import TrainData
from vit.distributed.world import World, join_process_group
from vit.run.folder import RunFolder
from vit.training.recomputed import recomputation_of, used_sums
from vit.training.step import StepRunner, augmented_batches

WARM_UP = 3  # steps before anything is measured


def measure(cfg: Config, world: World, run: RunFolder, steps: int) -> list[tuple[float, float]]:
    """Seconds and processor seconds of each step, from the wait for its batch to the end of its update."""
    data = TrainData(cfg, world)
    runner = StepRunner(data.schedule, world, TrainState.fresh(cfg, world.device))
    recomputation = recomputation_of(run, runner, data)
    times = []
    with closing(data.batches(0, data.schedule.total_steps)) as decoded:
        batches = itertools.islice(augmented_batches(data.schedule, world, decoded, 0), WARM_UP + steps)
        before = time.perf_counter(), time.process_time()
        for step, batch in enumerate(batches):
            with recomputation.compared(step, partial(used_sums, batch)):
                runner.forward_backward(step, batch)
            runner.update(step)
            runner.discard_unchecked()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter(), time.process_time()
            times.append((now[0] - before[0], now[1] - before[1]))
            before = now
    return times[WARM_UP:]


def main() -> None:
    """Prints the medians as a JSON object."""
    parser = config_parser("recompute_steps", "Measures training steps that recompute a micro-batch, and others.")
    parser.add_argument("--steps", type=int, default=40, help="steps to measure")
    cfg, options = parse_config(parser, None)
    with tempfile.TemporaryDirectory() as folder, join_process_group(cfg) as world:
        times = measure(cfg, world, RunFolder(Path(folder)), options.steps)
    # Steps are counted from 0, and the second of two recomputes.  Each is compared with those before and after it.
    first = WARM_UP % 2 == 0
    figures = {}
    for name, each in zip(("seconds", "processor_seconds"), zip(*times, strict=True), strict=True):
        triples = list(zip(each, each[1:], each[2:], strict=False))[0 if first else 1 :: 2]
        usual = statistics.median(each[1 if not first else 0 :: 2])
        extra = statistics.median(b - (a + c) / 2 for a, b, c in triples)
        figures[name] = {"step": round(usual, 4), "recomputing": round(extra, 4), "ratio": round(extra / usual, 3)}
    print(json.dumps(figures | {"steps": len(times), "micro_batches": cfg.micro_batches}))


if __name__ == "__main__":
    main()
