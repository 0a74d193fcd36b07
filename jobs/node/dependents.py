"""Lets the jobs start that wait for this one, as soon as its work is done.

They wait by `--dependency=afterok`, for the state COMPLETED.  Slurm 24.05 and later give a job that was preempted in
any of its starts, with a grace time and PreemptMode=CANCEL, the state PREEMPTED at its end, even if it has completed:
then the dependency could never be satisfied, and Slurm would remove the jobs that wait.  Users may change their jobs.
"""

from jobs.node import slurm_job
from jobs.node.slurm_commands import has_commands, run
from jobs.slurm import tables


def release_dependents() -> list[str]:
    """Removes the dependency of those jobs of this user that wait only for this one; returns their ids.

    In a container without Slurm's commands nothing is changed.
    """
    job = slurm_job.job_id()
    if job is None or not has_commands():
        return []
    waiting = tables.waiting_for(job, run(*tables.DEPENDENCIES).stdout.splitlines())
    return [number for number in sorted(waiting) if not _refused(number)]


def _refused(job: str) -> bool:
    return run("scontrol", "update", f"JobId={job}", "Dependency=").returncode != 0
