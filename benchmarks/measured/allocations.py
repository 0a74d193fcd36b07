"""What Slurm accounted for the jobs of a run on the test cluster, start by start."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.helpers.background_load import CORES_PER_GPU
from tests.helpers.slow_checkout import RankStep
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for


@dataclass(frozen=True)
class Allocation:
    """One start of a job.  Times are seconds since the epoch; Slurm's have a resolution of one second."""

    job: str
    gpus: int
    start: float
    end: float
    first_step: float | None  # when the first step of this start began; None if it made none

    @property
    def gpu_seconds(self) -> float:
        """GPU-seconds of the allocation."""
        return self.gpus * (self.end - self.start)


def allocations(cluster: Cluster, jobs: Sequence[str], steps: Sequence[RankStep]) -> list[Allocation]:
    """All starts of these jobs, requeued ones included, in order.  Waits until the last end is accounted."""
    query = ("sacct", "-X", "-D", "-n", "-P", "-j", ",".join(jobs), "-o", "JobID,Start,End,AllocTRES")

    def rows() -> list[list[str]]:
        lines = [line.split("|") for line in cluster.call(*query).splitlines()]
        return [row for row in lines if row[1] not in ("Unknown", "None") and "cpu=" in row[3]]

    wait_for(lambda: rows() and all(row[2] != "Unknown" for row in rows()), "Slurm to account the last end", 60)
    offset = time.time() - time.monotonic()
    out = []
    for job, started, ended, resources in rows():
        start, end = (datetime.fromisoformat(text).timestamp() for text in (started, ended))
        gpus = int(resources.split("cpu=")[1].split(",")[0]) // CORES_PER_GPU
        inside = [
            step.begun + offset for step in steps
            if step.start.partition(".")[0] == job and start <= step.begun + offset <= end + 1
        ]  # fmt: skip
        out.append(Allocation(job, gpus, start, end, min(inside, default=None)))
    return sorted(out, key=lambda each: each.start)
