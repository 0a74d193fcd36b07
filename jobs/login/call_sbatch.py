"""Calls sbatch for submitit, and keeps what submitit would discard: the remarks of the site, and the cluster's name.

submitit takes the first number after the word "job" for that of the job, also if it is in a banner that a wrapper of
the site prints before; and of a job that is accepted, it discards what sbatch prints on standard error.  But that is
where a job_submit plugin tells the user what it has changed.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from submitit.core import utils

from jobs.login import held_jobs
from jobs.login.held_jobs import SubmissionError
from jobs.slurm import submission
from jobs.slurm.submission import SubmittedJob


@dataclass
class Told:
    """What sbatch said of the jobs that it accepted."""

    remarks: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)  # of each job; empty: the own cluster


@contextmanager
def sbatch_heard() -> Iterator[Told]:
    """Replaces submitit's way to call a command meanwhile; it has no other place for this, for arrays neither."""
    told, original = Told(), utils.CommandFunction

    class Command(original):  # type: ignore[misc, valid-type]
        """One call."""

        def __call__(self, *_: object, **__: object) -> str:
            return _call(self.command, told)

    utils.CommandFunction = Command  # type: ignore[misc]
    try:
        yield told
    finally:
        utils.CommandFunction = original  # type: ignore[misc]


def _call(command: Sequence[str], told: Told) -> str:
    """What submitit is to see of the output.  Raises FailedJobError with what was printed, SubmissionError."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise utils.FailedJobError(done.stderr.strip() or done.stdout.strip())
    accepted = submission.submitted_job(done.stdout)
    if accepted is None:
        accepted = _job_in_queue(command[-1], done.stdout + done.stderr)
    told.remarks += [line for line in submission.remarks(done.stderr) if line not in told.remarks]
    told.clusters.append(accepted.cluster)
    return f"Submitted batch job {accepted.job}"


def _job_in_queue(script: str, printed: str) -> SubmittedJob:
    """The job with this script, by Slurm's queue."""
    jobs = [job for job, queued in held_jobs.own_jobs().items() if queued == script]
    if not jobs:
        first = next((line.strip() for line in printed.splitlines() if line.strip()), "nothing")
        raise SubmissionError(f"sbatch did not say the number of the job, and no job is in the queue; it said: {first}")
    return SubmittedJob(jobs[0].partition("_")[0], "")
