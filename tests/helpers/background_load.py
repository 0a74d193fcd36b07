"""Jobs of other users on the test cluster: they take GPUs at given times for given times, by a seeded schedule.

Ranks on the CPU request cores and no GPUs.  Therefore a GPU of these nodes stands for a quarter of the node's cores:
a run that is to compete for them must be submitted with `CORES`.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.helpers.background import in_background
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_config import CPUS, GPUS, NODES

SIZES, SHARES = (1, 2, 4), (5, 3, 2)  # GPUs of a job on one node, and how often jobs have that size
CORES_PER_GPU = CPUS // GPUS
CORES = ("--cpus-per-gpu", str(CORES_PER_GPU))  # options of submit.py
NAME = "others"  # of these jobs


@dataclass(frozen=True)
class LoadJob:
    """A job of another user: it is submitted at `at` seconds, and takes `gpus` of one node for `seconds`."""

    at: float
    gpus: int
    seconds: float
    node: str = ""  # one that it must run on; empty: any


def random_load(seed: int, length: float, mean_seconds: float, share: float) -> list[LoadJob]:
    """Jobs of `length` seconds that would take this share of all GPUs on average, the same for each seed.

    At the beginning they fill the cluster.  Times between jobs and times of jobs are exponential, so that a job's
    remaining time does not depend on when it is looked at.
    """
    generator = random.Random(seed)
    mean_gpus = sum(size * weight for size, weight in zip(SIZES, SHARES, strict=True)) / sum(SHARES)
    between = mean_gpus * mean_seconds / (share * GPUS * len(NODES))
    out, at, taken = [], 0.0, 0
    while at < length:
        (gpus,) = generator.choices(SIZES, SHARES)
        out.append(LoadJob(at, gpus, round(generator.expovariate(1 / mean_seconds), 1)))
        taken += gpus
        if taken >= GPUS * len(NODES):
            at += generator.expovariate(1 / between)
    return out


@contextmanager
def loaded(cluster: Cluster, jobs: Sequence[LoadJob]) -> Iterator[None]:
    """Submits the jobs, each at its time; cancels those that are left at the end."""
    begun = time.monotonic()
    waiting = sorted(jobs, key=lambda job: job.at)
    while waiting and not waiting[0].at:  # those of the beginning are in the queue before anything else
        submit(cluster, waiting.pop(0))

    def submit_all(over: threading.Event) -> None:
        for job in waiting:
            if over.wait(max(0, begun + job.at - time.monotonic())):
                return
            submit(cluster, job)

    try:
        with in_background(submit_all):
            yield
    finally:
        cluster.call("scancel", "--name", NAME, check=False)


def submit(cluster: Cluster, job: LoadJob) -> None:
    """Submits a job of another user.  Its time limit is the next whole minute, so that others may be backfilled."""
    limit = str(1 + int(job.seconds // 60))
    resources = (
        "--nodes",
        "1",
        "--gpus-per-node",
        str(job.gpus),
        "--cpus-per-task",
        str(job.gpus * CORES_PER_GPU),
        "--time",
        limit,
    )
    where = ("--nodelist", job.node) if job.node else ()
    quiet = ("--output", "/dev/null", "--job-name", NAME, "--no-requeue")
    cluster.call("sbatch", "--partition", "low", *resources, *where, *quiet, "--wrap", f"exec sleep {job.seconds}")
