"""Training steps of one recipe with three sources of batches, for pipeline.py.

python -m benchmarks.measured.pipeline_steps --config FILE --rounds N --steps N [--setting value …]

The sources take turns in one process: the whole pipeline (decoding and augmentation, as the trainer runs them), decoded
images that are augmented, and batches that are ready.  Decoding and augmentation are also run alone.  The last line is
one JSON object.
"""

import itertools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from vit.checkpoint.train_state import TrainState
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config
from vit.data.loader import Batch, TrainData
from vit.distributed.world import World, join_process_group
from vit.training.step import AugmentedBatch, StepRunner, augmented_batches

KEPT = 2  # batches that are kept on the device and used again and again
COMPILING = 3  # steps before anything is measured


@dataclass(frozen=True)
class Turn:
    """What some steps of one source took, for each image."""

    seconds: float
    processor_seconds: float  # of all threads of this process


class Steps:
    """The steps of a run, without trainer: one process, one device."""

    def __init__(self, cfg: Config, world: World) -> None:
        self.cfg, self.world = cfg, world
        self.data = TrainData(cfg, world)
        self.schedule = self.data.schedule
        self.runner = StepRunner(self.schedule, world, TrainState.fresh(cfg, world.device))
        with closing(self._decoded(0)) as decoded:
            self.kept = [
                replace(batch, images=batch.images.clone(), labels=batch.labels.clone())
                for batch in itertools.islice(decoded, KEPT)
            ]
        self.ready = list(itertools.islice(self._augmented(0), KEPT))
        self.step = 0

    def _decoded(self, start: int) -> Iterator[Batch]:
        return self.data.batches(start, self.schedule.total_steps)

    def _augmented(self, start: int) -> Iterator[AugmentedBatch]:
        return augmented_batches(self.schedule, self.world, itertools.cycle(self.kept), start)

    def _pipeline(self, start: int) -> Iterator[AugmentedBatch]:
        with closing(self._decoded(start)) as decoded:
            yield from augmented_batches(self.schedule, self.world, decoded, start)

    def turns(self) -> dict[str, Callable[[int], Turn]]:
        """What takes turns, by name: each runs some steps."""
        return {
            "synthetic": lambda steps: self._train(itertools.cycle(self.ready), steps),
            "augmented": lambda steps: self._train(self._augmented(self.step), steps),
            "pipeline": lambda steps: self._train(self._pipeline(self.step), steps),
            "decode alone": lambda steps: self._drain(self._decoded(self.step), steps),
            "augment alone": lambda steps: self._drain(self._augmented(self.step), steps),
        }

    def _train(self, batches: Iterator[AugmentedBatch], steps: int) -> Turn:
        return self._timed(batches, steps, self._train_step)

    def _drain(self, batches: Iterator[Any], steps: int) -> Turn:
        return self._timed(batches, steps, lambda _: None)

    def _train_step(self, batch: AugmentedBatch) -> None:
        self.runner.forward_backward(self.step, batch)
        self.runner.update(self.step)
        self.runner.discard_unchecked()
        self.step += 1

    def _timed(self, batches: Iterator[Any], steps: int, use: Callable[[Any], None]) -> Turn:
        """First uses the batches that are prepared ahead; as many are prepared, in vain, after the last step."""
        for _ in range(self.cfg.data.prefetch + 1):
            use(next(batches))
        self._synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            use(next(batches))
        self._synchronize()
        images = steps * self.cfg.global_batch
        turn = Turn((time.perf_counter() - wall) / images, (time.process_time() - processor) / images)
        if isinstance(batches, Generator):
            batches.close()  # ends the threads that decode
        return turn

    def _synchronize(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()


def measure(cfg: Config, world: World, rounds: int, count: int) -> dict[str, Any]:
    """Runs all turns `rounds` times, `count` steps each; returns the figures."""
    steps = Steps(cfg, world)
    for batch in itertools.islice(itertools.cycle(steps.ready), COMPILING):
        steps._train_step(batch)
    turns: dict[str, list[Turn]] = defaultdict(list)
    for number in range(rounds):
        for name, run in list(steps.turns().items())[:: 1 if number % 2 else -1]:
            turns[name].append(run(count))

    def median(value: Callable[..., float], *names: str) -> float:
        return statistics.median(value(*each) for each in zip(*(turns[name] for name in names), strict=True))

    speed = {name: 1 / median(lambda turn: turn.seconds, name) for name in steps.turns()}
    processor_ms = {name: 1e3 * median(lambda turn: turn.processor_seconds, name) for name in speed}
    return {
        "vs_synthetic": round(median(lambda a, b: a.seconds / b.seconds, "synthetic", "pipeline"), 4),
        "vs_augmented": round(median(lambda a, b: a.seconds / b.seconds, "augmented", "pipeline"), 4),
        "vs_parts_processor": round(
            median(
                lambda whole, *parts: whole.processor_seconds / sum(part.processor_seconds for part in parts),
                *("pipeline", "synthetic", "decode alone", "augment alone"),
            ),
            4,
        ),
        "images_per_s": {name: round(value, 1) for name, value in speed.items()},
        "processor_ms_per_image": {name: round(value, 4) for name, value in processor_ms.items()},
        "cores_for_decoding": round(speed["synthetic"] * processor_ms["decode alone"] / 1e3, 2),
        "images_per_step": cfg.global_batch,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
    }


def main() -> None:
    parser = config_parser("pipeline_steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    cfg, options = parse_config(parser)
    with join_process_group(cfg) as world:
        print(json.dumps(measure(cfg, world, options.rounds, options.steps)))


if __name__ == "__main__":
    main()
