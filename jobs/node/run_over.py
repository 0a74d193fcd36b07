"""Ends a job at once that Slurm has started although its run is over.

Slurm 24.05 and later requeue a job that ends in the grace time of a preemption, even if it has completed.  The mark for
that stays with a job that requeues itself in its grace time: then Slurm requeues it once more when it completes, up to
days later.  Any version requeues a job that has ended if somebody calls `scontrol requeue`.
"""

import sys

from jobs.node import slurm_job
from jobs.node.candidates import job_ids
from vit.run.folder import Event, RunFolder
from vit.run.progress import show

OVER = {"finished": "finished", "gave up": "given up", "canceled": "been canceled"}  # after "this run has"


def event_that_ended(folder: RunFolder) -> Event | None:
    """The event that ended the run since its newest submission; None if there is something to do."""
    ended = folder.last("submitted", "reopened", *OVER)
    return ended if ended is not None and ended["event"] in OVER else None


def exit_if_over(folder: RunFolder) -> None:
    """Exits the process if this job's run is over: with code 0 if it has finished, else with 1.

    A job that the ledger does not list belongs to a submission that is just being recorded.  One of several jobs of a
    run leaves in candidacy.py.  Raises OSError.
    """
    if job_ids(folder.events()) != [slurm_job.job_id()] or (ended := event_that_ended(folder)) is None:
        return
    finished = ended["event"] == "finished"
    if slurm_job.node_rank() == 0:
        why = f"this run has {OVER[ended['event']]}, and Slurm started its job again"
        show(f"nothing to do: {why}{'' if finished else '; submit it again to resume it'}", lasting=True)
    sys.exit(0 if finished else 1)
