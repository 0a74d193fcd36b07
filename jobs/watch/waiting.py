"""What to do about a job that waits for something that does not come by itself, by Slurm's reason."""

from collections.abc import Sequence

_NODES = "nodes are down, drained or reserved (`sinfo -R`): it waits for them; with a range, as in --nodes 1-2, a run "
_NODES += "goes on with fewer"
_PARTITION = "its partition starts no jobs now: it waits; or scancel {jobs}, and submit again with another --partition"
# The beginning of Slurm's reason, and the advice, given the jobs.
ADVICE = {
    "PartitionTimeLimit": "the time limit of its partition is below that of the job: scancel {jobs}, and submit again "
    "with a shorter --time",
    "PartitionNodeLimit": "its partition allows fewer nodes, or has fewer: scancel {jobs}, and submit again with "
    "other --nodes or --partition",
    "PartitionDown": _PARTITION,
    "PartitionInactive": _PARTITION,
    "Nodes required": _NODES,
    "ReqNodeNotAvail": _NODES,
    "JobHeldUser": "it was held (`scontrol hold`): scontrol release {jobs}",
    "requeued in held state": "it was held (`scontrol requeuehold`): scontrol release {jobs}",
    "JobHeldAdmin": "an administrator holds it, or Slurm itself, after errors or because it was suspended when it was "
    "requeued: ask for scontrol release {jobs}; or scancel {jobs}, and submit again to resume at the newest checkpoint",
    "launch failed requeued held": "Slurm could not start it and holds it: ask why, then scontrol release {jobs}",
}


def advice(detail: str, job_ids: Sequence[str]) -> str:
    """The advice for jobs of a run that wait for this reason, or for several; "" if they need only wait."""
    found = [text for reason, text in ADVICE.items() if reason in detail.replace("_", " ")]
    return found[0].format(jobs=",".join(job_ids)) if found else ""
