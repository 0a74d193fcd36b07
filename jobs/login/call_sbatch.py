"""Calls sbatch for submitit, and keeps what submitit would discard: the remarks of the site, and the cluster's name.

submitit takes the first number after the word "job" for that of the job, also if it is in a banner that a wrapper of
the site prints before; and of a job that is accepted, it discards what sbatch prints on standard error.  But that is
where a job_submit plugin tells the user what it has changed.
"""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from submitit.core import utils

from jobs.login import held_jobs
from jobs.login.held_jobs import SubmissionError
from jobs.login.multi_cluster import named_cluster
from jobs.login.slurm_queries import SlurmUnreachableError
from jobs.slurm import client, submission
from jobs.slurm.errors import UNANSWERED
from jobs.slurm.submission import SubmittedJob

# How often the queue is asked for a job whose number sbatch did not say, and how long while Slurm does not respond.
ANSWERS, PAUSE_SECONDS, ANSWER_SECONDS = 3, 1.5, 40.0


@contextmanager
def sbatch_heard() -> Iterator[list[str]]:
    """Replaces submitit's way to call a command meanwhile; it has no other place for this, for arrays neither.

    Yields what sbatch says of the jobs that it accepts.
    """
    told, original = list[str](), utils.CommandFunction

    class Command(original):  # type: ignore[misc, valid-type]
        """One call."""

        def __call__(self, *_: object, **__: object) -> str:
            return _call(self.command, told)

    utils.CommandFunction = Command  # type: ignore[misc]
    try:
        yield told
    finally:
        utils.CommandFunction = original  # type: ignore[misc]


class UnansweredError(utils.FailedJobError):
    """Slurm did not answer, and the job is not in the queue, yet: nobody knows whether it will be."""


def _call(command: Sequence[str], told: list[str]) -> str:
    """What submitit is to see of the output.  Raises FailedJobError with what was printed, SubmissionError."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    printed = done.stderr.strip() or done.stdout.strip()
    if done.returncode and not UNANSWERED.search(submission.rejection(printed).reason):
        raise utils.FailedJobError(printed)
    accepted = submission.submitted_job(done.stdout) if not done.returncode else None
    if accepted is None and (job := _job_with_script(command[-1])):
        accepted = SubmittedJob(job, "")
    if accepted is None and done.returncode:
        raise UnansweredError(printed)
    if accepted is None:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        raise SubmissionError(
            f"sbatch did not say the number of the job, and none is in the queue; it said: {lines[0]}"
        )
    if done.returncode:
        told.append("it got no answer in time, but Slurm has accepted the job")
        done.stderr = ""
    told += [line for line in submission.remarks(done.stderr) if line not in told]
    if accepted.cluster not in ("", named_cluster()):
        subprocess.run(["scancel", "-M", accepted.cluster, accepted.job], capture_output=True, check=False)
        raise SubmissionError(
            f"sbatch submitted job {accepted.job} to cluster {accepted.cluster}, where nobody would look for it; it "
            f"was canceled: export {client.CLUSTER}={accepted.cluster}"
        )
    return f"Submitted batch job {accepted.job}"


def _job_with_script(script: str) -> str:
    """The job with this script, once the queue has it; "" if it has none, and has been asked again for some time."""
    deadline, answers = time.monotonic() + ANSWER_SECONDS, 0
    while answers < ANSWERS and time.monotonic() < deadline:
        try:
            if found := [job for job, queued in held_jobs.own_jobs().items() if queued == script]:
                return found[0].partition("_")[0]
            answers += 1
        except SlurmUnreachableError:
            pass
        time.sleep(PAUSE_SECONDS)
    return ""
