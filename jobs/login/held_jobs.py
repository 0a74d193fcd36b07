"""Jobs of a submission that is not complete: found, canceled, or released once all of them are recorded.

If a run is submitted in several sizes, sbatch is called several times.  No job may start before the ledger has all of
them: each is submitted with --hold, and all are released together.  So a command that is killed in between leaves only
jobs that cannot start, and the next command finds and cancels them.  Every version of Slurm lets users hold and release
their own jobs.
"""

import os
import shlex
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from jobs.login import slurm_queries
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError
from jobs.slurm import tables
from jobs.slurm.states import HELD

AGAIN = "run the same command again"
RELEASE_SECONDS = 15.0  # for which a controller that does not respond is asked again
NAMED, UNNAMED = "*_submission.sh", ".submission_file_*.sh"  # submitit's job scripts: after and before sbatch


class SubmissionError(RuntimeError):
    """Slurm rejected the job."""


class LeftInQueueError(SubmissionError):
    """Slurm stopped responding during a submission.  The next command completes it, or takes it back."""


def not_released(job_ids: Sequence[str]) -> LeftInQueueError:
    """All jobs are recorded, but still held."""
    return LeftInQueueError(
        f"the jobs {' '.join(job_ids)} are in the queue, but Slurm has not released them yet: {AGAIN}, or "
        f"scontrol release {','.join(job_ids)}"
    )


def not_canceled(reason: object) -> LeftInQueueError:
    """The submission failed, and the jobs that Slurm had accepted before are still in the queue."""
    return LeftInQueueError(f"{reason}; jobs that it had accepted may be in the queue: {AGAIN}")


def job_scripts(folder: Path) -> set[str]:
    """The names of the scripts of all jobs in submitit's folder."""
    return {file.name for pattern in (NAMED, UNNAMED) for file in folder.glob(pattern)}


def unrecorded_jobs(folder: Path, known: Collection[str], source: Path, task: str = "") -> list[str]:
    """The ids of jobs of a run, by its source, whose scripts are not among the known ones.

    `task` selects one task of each array, as in `_3`; without it an array has one id.  A script whose job id was not
    written down any more, because the command was killed, may belong to a job in the queue.  Raises
    SlurmUnreachableError.
    """
    out, unnamed = [], []
    for file in sorted(folder.glob(NAMED)):
        if file.name not in known and shlex.quote(str(source)) in file.read_text():
            out.append(file.name.partition("_")[0] + task)
    for file in sorted(folder.glob(UNNAMED)):
        if file.name not in known and not file.is_symlink() and shlex.quote(str(source)) in file.read_text():
            unnamed.append(file.name)
    if unnamed:
        out += [
            job for job, script in own_jobs().items() if script.rpartition("/")[2] in unnamed and job.endswith(task)
        ]
    return out


def own_jobs() -> dict[str, str]:
    """The script of each job of this user, by its id."""
    try:
        return tables.job_scripts(slurm_queries.lines_of(*tables.scripts(os.getuid()), strict=True))
    except SlurmNotFoundError:
        return {}


def cancel(job_ids: Sequence[str]) -> None:
    """Cancels jobs, which may have ended already.  Raises SlurmUnreachableError, SlurmNotFoundError."""
    if job_ids:
        slurm_queries.lines_of("scancel", *job_ids)


def release(job_ids: Sequence[str]) -> None:
    """Releases those of the jobs that are held.  Raises LeftInQueueError if Slurm does not respond for some time."""
    deadline = time.monotonic() + RELEASE_SECONDS
    try:
        while not _released(job_ids):
            if time.monotonic() > deadline:
                raise not_released(job_ids)
            time.sleep(0.3)
    except KeyboardInterrupt:
        raise not_released(job_ids) from None


def _released(job_ids: Sequence[str]) -> bool:
    """Asks Slurm to release the jobs; whether none of them is held any more."""
    try:
        if all(job.reason != HELD for job in slurm_queries.queued_jobs(job_ids).values()):
            return True
        slurm_queries.lines_of("scontrol", "release", ",".join(job_ids))
        return all(job.reason != HELD for job in slurm_queries.queued_jobs(job_ids).values())
    except (SlurmUnreachableError, OSError):
        return False
