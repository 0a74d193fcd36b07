"""Has the job of a run that failed start again, and writes down why."""

from jobs.node import signals, slurm_job
from jobs.node.restart_policy import Decision, Failure
from vit.run.folder import RunFolder
from vit.run.progress import show


def requeue(folder: RunFolder, decision: Decision, failure: Failure) -> str:
    """Returns why that could not be; else nothing, and the process is to end with `slurm.REQUEUED`."""
    signals.ignore()  # Slurm ends us while we still speak to it
    folder.record("requeueing", life=slurm_job.life(), why=decision.why, exclude=decision.exclude, **failure.event())
    off = f", off {', '.join(decision.exclude)}" if decision.exclude else ""
    show(f"{failure.told()}\nback into the queue{off}: {decision.why}", lasting=True)
    refused = slurm_job.requeue(decision.exclude)
    return f"{failure.told()}\nthe job could not be requeued: {refused}" if refused else ""
