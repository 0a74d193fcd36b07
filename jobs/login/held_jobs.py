"""Jobs of a submission that is not complete: found, canceled, or released once all of them are recorded.

If a run is submitted in several sizes, sbatch is called several times.  No job may start before the ledger has all of
them: each is submitted with --hold, and all are released together.  So a command that is killed in between leaves only
jobs that cannot start, and the next command finds and cancels them.  Every version of Slurm lets users hold and release
their own jobs.
"""

import os
import shlex
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from jobs.login import slurm_queries
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError

HELD = "JobHeldUser"  # Slurm's reason for a job that its user holds
RELEASE_SECONDS = 20.0  # for which a controller that does not respond is asked again
NAMED, UNNAMED = "*_submission.sh", ".submission_file_*.sh"  # submitit's job scripts: after and before sbatch


class SubmissionError(RuntimeError):
    """Slurm rejected the job."""


class NotReleasedError(SubmissionError):
    """Jobs that were submitted and recorded are still held: Slurm stopped responding."""

    def __init__(self, job_ids: Sequence[str]) -> None:
        super().__init__(
            f"Slurm stopped responding before it released the submitted job{'s' if len(job_ids) > 1 else ''} "
            f"{' '.join(job_ids)}: run the same command again, or scontrol release {','.join(job_ids)}"
        )


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
            job for job, script in _own_jobs().items() if script.rpartition("/")[2] in unnamed and job.endswith(task)
        ]
    return out


def _own_jobs() -> dict[str, str]:
    """The script of each job of this user, by its id."""
    try:
        lines = slurm_queries.lines_of("squeue", "--noheader", "--array", "--format=%i|%o", "--user", str(os.getuid()))
    except SlurmNotFoundError:
        return {}
    return dict(line.split("|", 1) for line in lines if "|" in line)


def cancel(job_ids: Sequence[str]) -> None:
    """Cancels jobs, which may have ended already."""
    if job_ids:
        subprocess.run(["scancel", *job_ids], capture_output=True, check=False)


def release(job_ids: Sequence[str]) -> None:
    """Releases those of the jobs that are held.  Raises NotReleasedError if Slurm does not respond for some time."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            held = [job for job, state in slurm_queries.queued_jobs(job_ids).items() if state.reason == HELD]
            if not held:
                return
            slurm_queries.lines_of("scontrol", "release", ",".join(job_ids))
        except SlurmUnreachableError:
            pass
        if time.monotonic() > deadline:
            raise NotReleasedError(job_ids)
        time.sleep(0.1)
