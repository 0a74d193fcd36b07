"""What is estimated: the runs that the command would submit, and in which sizes; stores the estimate with them."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from jobs.estimate.device import Device, device_here, device_on_slurm
from jobs.estimate.past_runs import PastRuns, read_past_runs
from jobs.estimate.sizes import WITHOUT_SLURM, sizes_here, sizes_on_slurm
from jobs.estimate.speeds import read_table
from jobs.estimate.wall_time import RESERVE_SECONDS, Basis, Estimate, cores_here
from jobs.estimate.work import Work, work_of
from jobs.login.resources import Resources, usable_nodes
from jobs.slurm.tables import PartitionNodes
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.run.folder import RunFolder

RECORD_SECONDS = 0.3  # in which a submission reads past runs
Planned = tuple[RunFolder, Config]


@dataclass(frozen=True)
class Request:
    """The runs of one command: one, or those of a sweep."""

    runs: Sequence[Planned]
    requested: Sequence[Resources]  # of each run, in each size that is submitted
    backend: str  # "slurm", "local" or "debug"
    available: Sequence[PartitionNodes]  # empty if they are not known

    @property
    def largest(self) -> Resources:
        """The largest of the requested sizes."""
        return max(self.requested, key=_ranks)

    @property
    def on_slurm(self) -> bool:
        """Whether the runs are submitted to Slurm, and not executed here."""
        return self.backend == "slurm"

    @property
    def groups(self) -> list[PartitionNodes]:
        """The nodes that the runs could use."""
        return usable_nodes(self.available, self.largest.cluster)

    def sizes(self) -> list[Resources]:
        """The sizes to compare: those that are submitted if they are several, else also all others that fit."""
        if len(self.requested) > 1:
            return sorted(self.requested, key=_ranks)
        found = set.intersection(*(set(self._sizes(cfg)) for _, cfg in self.runs))
        one = self.requested[0]
        others = [self._of_size(nodes, gpus) for nodes, gpus in found if nodes * gpus != one.nodes * one.gpus]
        return sorted([*others, one], key=_ranks)

    def _sizes(self, cfg: Config) -> list[tuple[int, int]]:
        if not self.on_slurm:
            return sizes_here(cfg, device_here(cfg, PastRuns()).count or WITHOUT_SLURM)

        def fits(nodes: int, gpus: int) -> None:
            self._of_size(nodes, gpus).check(self.available)

        return sizes_on_slurm(cfg, self.groups, self.largest.cluster.cpus_per_gpu, fits)

    def _of_size(self, nodes: int, gpus: int) -> Resources:
        cores = gpus * self.largest.cluster.cpus_per_gpu
        return replace(self.largest, nodes=nodes, gpus=gpus, cpus=cores)

    def past_runs(self, seconds: float) -> PastRuns:
        """The runs in the runs folder; they are read for about so many seconds."""
        folder = self.runs[0][0].path.parent
        return read_past_runs(folder.parent if len(self.runs) > 1 else folder, seconds)  # the parent of a sweep's

    def device(self, resources: Resources, past: PastRuns) -> Device:
        """What the runs are computed on in this size."""
        cfg = self.runs[0][1]
        return device_on_slurm(cfg, self.groups, resources, past) if self.on_slurm else device_here(cfg, past)

    def basis(self, past: PastRuns) -> Basis:
        """What the estimates are computed from."""
        cluster = self.largest.cluster
        limit = 60 * cluster.minutes - cluster.signal_seconds - RESERVE_SECONDS if self.on_slurm else math.inf
        return Basis(past=past, table=read_table(), cores=None if self.on_slurm else cores_here(), job_seconds=limit)

    def works(self) -> list[Work]:
        """What is left of each run.  Raises OSError, UserError."""
        return [work_of(cfg, run) for run, cfg in self.runs]

    def record(self) -> None:
        """Stores the estimate of each run in its ledger, as the event `estimated`, if anything is known."""
        with suppress(OSError, UserError):  # of the data sets or the checkpoints: the submission reports it
            works, past = self.works(), self.past_runs(RECORD_SECONDS)
            basis = self.basis(past)
            for (run, _), work in zip(self.runs, works, strict=True):
                found = [
                    basis.estimate(work, each.nodes, each.gpus, self.device(each, past).name)
                    for each in sorted(self.requested, key=_ranks, reverse=True)
                ]
                events = [estimate.event(work) for estimate in found if estimate is not None and estimate.scaled]
                if events:  # none if no step is left
                    run.note("estimated", **events[0] | ({"sizes": events} if len(events) > 1 else {}))


def _ranks(resources: Resources) -> int:
    return resources.nodes * resources.gpus


@dataclass(frozen=True)
class Row:
    """The estimate of all runs in one size."""

    resources: Resources
    device: Device
    estimates: tuple[Estimate, ...]  # of each run
    at_once: int  # how many of them run at the same time; 0: all

    @property
    def seconds(self) -> float:
        """From the first start until the last run ends, without the queue."""
        walls = [estimate.wall for estimate in self.estimates]
        rounds = math.ceil(len(walls) / self.at_once) if self.at_once else 1
        return max(*walls, rounds * sum(walls) / len(walls))

    @property
    def gpu_hours(self) -> float:
        """Of all runs."""
        return sum(estimate.gpu_hours for estimate in self.estimates)


def rows(request: Request, basis: Basis, works: Sequence[Work]) -> list[Row]:
    """The rows that can be estimated."""
    at_once = request.largest.max_parallel if request.on_slurm else 1
    out = []
    for resources in request.sizes():
        device = request.device(resources, basis.past)
        found = [basis.estimate(work, resources.nodes, resources.gpus, device.name) for work in works]
        estimates = tuple(estimate for estimate in found if estimate is not None)
        if len(estimates) == len(works):
            out.append(Row(resources, device, estimates, at_once))
    return out
