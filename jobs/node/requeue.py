"""Requeues the job of a failed run, and records why."""

from jobs.node import signals, slurm_job
from jobs.node.restart_policy import Decision, Failure
from vit.run.folder import RunFolder
from vit.run.progress import show


def requeue(folder: RunFolder, decision: Decision, failure: Failure) -> str:
    """Returns why Slurm refused, or "": then the process must end with the exit code `slurm_job.REQUEUED`."""
    signals.ignore_stop_signals()  # Slurm ends this process while it is still talking to Slurm
    folder.record(
        "requeueing", life=slurm_job.start_id(), why=decision.why, exclude=decision.exclude, **failure.event()
    )
    nodes = f" without {', '.join(decision.exclude)}" if decision.exclude else ""
    show(f"{failure.message()}\nrequeueing the job{nodes}: {decision.why}", lasting=True)
    refused = slurm_job.requeue(decision.exclude)
    return f"{failure.message()}\nthe job could not be requeued: {refused}" if refused else ""
