"""Submits a sweep as one job array, or as several if Slurm allows only smaller ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from jobs.login import sbatch
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError, lines_of
from jobs.slurm.scontrol import CONFIG, config_of, largest_array
from vit.config.user_error import UserError
from vit.run.counts import counted

Run = TypeVar("Run")


def array_size(runs: int, max_parallel: int | None, backend: str) -> int:
    """How many of the runs one job array may have; at least 1.

    Raises UserError if several arrays are needed: `max_parallel` would limit each of them alone.
    """
    limit = _slurm_limit() if backend == "slurm" and runs > 1 else None
    if limit is None or runs <= limit:
        return runs
    if max_parallel:
        allowed = f"up to {limit} runs" if limit else "no array"
        raise UserError(
            f"--max-parallel {max_parallel}: Slurm limits each job array alone, and this cluster allows {allowed} in "
            f"one (MaxArraySize), but the sweep has {runs}; sweep fewer values at a time, or leave out --max-parallel"
        )
    return max(1, limit)


def _slurm_limit() -> int | None:
    """The most runs in one job array; None if Slurm does not tell."""
    try:
        return largest_array(config_of("\n".join(lines_of(*CONFIG))))
    except (SlurmUnreachableError, SlurmNotFoundError):
        return None


def parts(runs: Sequence[Run], size: int) -> list[Sequence[Run]]:
    """The runs of each job array."""
    return [runs[first : first + size] for first in range(0, len(runs), size)]


def submit(
    parent: Path, runs: Sequence[Run], size: int, submit_jobs: Callable[[Sequence[Run]], list[list[str]]]
) -> None:
    """Submits the runs of a sweep, and prints their jobs; also those submitted before an array was rejected."""
    job_ids: list[list[str]] = []
    try:
        for part in parts(runs, size):
            job_ids += submit_jobs(part)
    finally:
        if job_ids:
            print(f"submitted {counted(len(job_ids), 'run')}; each is requeued as needed until it is finished")
            print(sbatch.sweep_hints(parent, job_ids))
