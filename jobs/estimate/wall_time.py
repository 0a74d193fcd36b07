"""The time that a run takes on a number of GPUs, from speeds that were measured."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.estimate.past_runs import Evaluations, PastRun, PastRuns, active
from jobs.estimate.speeds import CPU, Overheads, SaveTimes, Scaled, Table, describe, kind, nearest
from jobs.estimate.work import Work
from vit.config.schema import Config
from vit.history.utilization import training_flops_per_image
from vit.model.weight_fit import state_bytes

FORWARD = 3  # a training step takes about as many times the operations of an evaluation
TABLE_FACTOR = math.log(
    4
)  # saves of a past run come before those of the table, unless their sizes are that much nearer
RESERVE_SECONDS = 60  # Slurm may send the signal before the time limit so much earlier


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes on one size."""

    nodes: int
    gpus: int  # ranks per node
    images_per_second: float  # of all ranks, mean over the images that are left
    seconds: Mapping[str, float] = field(
        default_factory=dict
    )  # by category: step, evaluate, checkpoint, start, compile
    jobs: int = 1  # that Slurm runs, one after the other, because of the time limit
    scaled: tuple[Scaled, ...] = ()  # where the speeds come from, one for each image size

    @property
    def ranks(self) -> int:
        """Ranks, each on one GPU."""
        return self.nodes * self.gpus

    @property
    def wall(self) -> float:
        """Seconds on the nodes, without interruptions."""
        return sum(self.seconds.values())

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs."""
        return self.wall * self.ranks / 3600

    def event(self, work: Work) -> dict[str, Any]:
        """What the ledger stores of it."""
        last = self.scaled[-1]
        return {
            "step": work.step,
            "steps": work.schedule.total_steps,
            "images": work.images,
            "nodes": self.nodes,
            "gpus": self.gpus,
            "images_per_second": round(self.images_per_second, 2),
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
            "device": kind(last.speed.device),
            "source": describe(last),
        }


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What estimates are computed from."""

    past: PastRuns
    table: Table
    cores: int | None = None  # that all ranks share on this machine; None: each rank has its own
    job_seconds: float = math.inf  # for which a job trains until the time limit

    def estimate(self, work: Work, nodes: int, gpus: int, device: str) -> Estimate | None:
        """The estimate for one size; None if nothing comparable was measured.

        `device` is "cpu", the name of a GPU, or "" for one of unknown kind.
        """
        ranks, speeds = nodes * gpus, [*self.past.speeds, *self.table.speeds]
        busy = active(ranks, device, self.cores)
        if not device and (last := nearest(work.cfg, "", ranks, speeds)) is not None:
            speeds = [
                speed for speed in speeds if kind(speed.device) == kind(last.speed.device)
            ]  # one kind for all sizes
        scaled, steps = list[Scaled](), 0.0
        for cfg, images in work.stages:
            found = nearest(cfg, device, ranks, speeds)
            if found is None:
                return None
            scaled.append(found)
            steps += images / (found.images_per_second * busy)
        if not scaled:
            return Estimate(nodes=nodes, gpus=gpus, images_per_second=0.0)
        first = scaled[-1]
        seconds = {"step": steps, "evaluate": work.evaluations * self._evaluation(work, first, busy)}
        saves = self.saves(work.cfg)
        interval = 60 * work.cfg.checkpoint.every_minutes or saves.interval
        seconds["checkpoint"] = (math.ceil(sum(seconds.values()) / interval) + 1) * saves.stall
        overheads = self._overheads(first, work.cfg)
        jobs = max(1, math.ceil(sum(seconds.values()) / max(60.0, self.job_seconds - overheads.start)))
        seconds["start"] = jobs * overheads.start
        if work.cfg.compile:
            seconds["compile"] = len(scaled) * (overheads.compile + (jobs - 1) * overheads.compile_again)
        rate = work.images / steps
        return Estimate(
            nodes=nodes, gpus=gpus, images_per_second=rate, seconds=seconds, jobs=jobs, scaled=tuple(scaled)
        )

    def _evaluation(self, work: Work, scaled: Scaled, busy: int) -> float:
        """Seconds of one evaluation: as in a past run, else three times as fast as training."""
        images = work.val_samples * (2 if work.cfg.optim.ema_decay else 1)
        found = self._evaluations(scaled)
        rate = FORWARD * scaled.images_per_second
        if found is not None:
            rate = found.images_per_second
            rate *= training_flops_per_image(found.model) / training_flops_per_image(work.cfg.model)
        return images / (rate * busy)

    def _evaluations(self, scaled: Scaled) -> Evaluations | None:
        run = None if scaled.speed.is_table else self.past.named(scaled.speed.name)
        return run.evaluations if run is not None else None

    def _overheads(self, scaled: Scaled, cfg: Config) -> Overheads:
        """Of the run whose speed is used, else of the newest run on such a device, else of the table."""
        run = None if scaled.speed.is_table else self.past.named(scaled.speed.name)
        rows = [past.overheads for past in self._newest_first(run) if past.overheads is not None]
        same = [row for row in rows if kind(row.device) == kind(scaled.speed.device)]
        compiled = [row for row in same if row.compile > 0] if cfg.compile else same
        table = [row for row in self.table.overheads if (row.device == CPU) == (scaled.speed.device == CPU)]
        return next(iter([*compiled, *table]))

    def saves(self, cfg: Config) -> SaveTimes:
        """How long saves of this model take, from those of the past whose size is nearest, else the table."""
        size = state_bytes(cfg)
        past = [past.saves for past in self.past.runs if past.saves is not None]
        measured = [*((saves, 0.0) for saves in past), (self.table.checkpoint, TABLE_FACTOR)]
        found, _ = min(measured, key=lambda each: round(abs(math.log(size / each[0].bytes)) + each[1], 6))
        return replace(
            found, bytes=size, stall=found.stall * size / found.bytes, write=found.write * size / found.bytes
        )

    def _newest_first(self, first: PastRun | None) -> Sequence[PastRun]:
        return [*([first] if first is not None else []), *self.past.runs]


def cores_here() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))
