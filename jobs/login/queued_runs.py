"""Which runs have jobs in Slurm's queue: one for each size that was submitted."""

from collections.abc import Sequence
from pathlib import Path

from jobs.login import slurm_queries
from jobs.login.multi_cluster import elsewhere
from jobs.login.sbatch import job_hints
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError
from jobs.node.candidates import job_ids
from jobs.slurm.tables import QueuedJob
from vit.run.folder import InUseError, RunFolder


def queued_jobs(runs: Sequence[RunFolder], backend: str) -> dict[Path, dict[str, QueuedJob]]:
    """The jobs, by id, of each run whose newest submission has jobs in the queue; completing ones may end first."""
    events = {run.path: run.events() for run in runs}
    ids = {path: job_ids(each) for path, each in events.items()}
    try:
        jobs = slurm_queries.wait_for_completing({job for each in ids.values() for job in each})
    except (SlurmUnreachableError, SlurmNotFoundError):
        if backend == "slurm":
            raise
        return {}  # without Slurm it may run here
    for path, each in events.items():
        if why := elsewhere(each):
            raise InUseError(f"{path} may be in a queue: {why}")
    found = {path: {job: jobs[job] for job in own if job in jobs} for path, own in ids.items()}
    return {path: own for path, own in found.items() if own}


def in_queue_message(run: RunFolder, jobs: dict[str, QueuedJob]) -> str:
    """Says where a run is that has these jobs in the queue, and the commands for them."""
    running = [job for job in jobs.values() if job.state != "PENDING"]
    state = f"already running on {running[0].nodes}" if running else "already in the queue"
    return f"{run.path} is {state}.\n{job_hints(run, [*jobs])}"
