"""What a job asks Slurm about the other jobs of its run, and tells it to do with them."""

import time
from collections.abc import Sequence

from jobs.node.slurm_commands import refusal, run
from jobs.node.slurm_job import show_job
from jobs.slurm import scontrol, tables
from jobs.slurm.errors import is_unknown_job
from jobs.slurm.states import DEFERRED, RUNNING_STATES, UNDECIDED_STATES


def cancel(jobs: Sequence[str]) -> str:
    """Cancels jobs, of which some may have ended; returns why Slurm refused, or ""."""
    return refusal("scancel", *jobs) if jobs else ""


def start_is_over(start: str) -> bool | None:
    """Whether all processes of this start of a job have ended; None if the controller does not respond.

    An empty name, of a damaged claim, is over: the lock of the run folder still keeps two jobs apart.
    """
    if not start:
        return True
    job, _, restarts = start.rpartition(".")
    shown = run(*scontrol.JOB, job)
    if is_unknown_job(shown.stdout, shown.stderr):
        return True
    facts = scontrol.facts_of(shown.stdout)
    if not facts:
        return None
    if facts["JobState"] in UNDECIDED_STATES:
        return False
    return facts["JobState"] not in RUNNING_STATES or facts.get("Restarts") != restarts


def was_canceled(start: str, released: bool) -> bool:
    """Whether somebody canceled a job in this start of it; not if it waited in the queue again by then.

    False also if Slurm does not know it any more, or does not respond.  The accounting does not tell the starts of a
    job apart: one that has `released` the run had time to record that it was canceled.
    """
    job, _, restarts = start.rpartition(".")
    if facts := show_job(job):
        return facts.get("JobState", "").startswith("CANCELLED") and facts.get("Restarts") == restarts
    if released:
        return False
    return any(line.startswith("CANCELLED") for line in run(*tables.final_state(job)).stdout.splitlines())


def pending_jobs(jobs: Sequence[str]) -> dict[str, dict[str, str]]:
    """What `scontrol show job` says of those of the jobs that are pending."""
    shown = {job: show_job(job) for job in jobs}
    return {job: facts for job, facts in shown.items() if facts.get("JobState") == "PENDING"}


def is_deferred(facts: dict[str, str]) -> bool:
    """Whether a pending job may not start yet.  Slurm gives that as the reason only after it has next looked at it."""
    eligible = scontrol.eligible_time(facts)
    later = eligible is not None and eligible.timestamp() > time.time() + 1
    return later or facts.get("Reason") == DEFERRED


def credential_seconds() -> float:
    """How long a requeued job must wait, because its last credential is still valid; a setting of the cluster."""
    return scontrol.credential_seconds(scontrol.config_of(run(*scontrol.CONFIG).stdout)) + 1
