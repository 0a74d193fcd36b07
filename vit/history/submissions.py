"""What the ledger says about the jobs of a submission, and about a run that one of them hands over to another."""

from collections.abc import Sequence

from vit.run.counts import counted
from vit.run.folder import Event

NEAR_THE_LIMIT_SECONDS = 900.0  # a warning signal that comes with less time left announces the time limit
PREEMPTED_OR_CANCELED = "preempted or canceled"  # until it is requeued, canceled as recorded, or submitted again


def jobs_of(submitted: Event) -> set[str]:
    """The ids of all jobs of a `submitted` event: one, or one for each size of the run; none without Slurm."""
    others = submitted.get("candidates")
    each = [submitted, *(others if isinstance(others, list) else [])]
    return {str(one["job"]) for one in each if isinstance(one, dict) and "job" in one}


def since_submitted(events: Sequence[Event], *ends: str) -> list[Event]:
    """The events since the run was last submitted, or since an event of these names."""
    last = max((i for i, event in enumerate(events) if event["event"] in {"submitted", *ends}), default=-1)
    return list(events[last + 1 :])


def why_handed_over(handover: Event, device: str) -> str:
    """`handed over to job 13 (4 GPUs)`."""
    ranks, size = handover.get("ranks"), handover.get("size")
    if not isinstance(size, str) or device == "cpu":
        size = counted(ranks, "rank" if device == "cpu" else "GPU") if isinstance(ranks, int) else ""
    return f"handed over to job {handover.get('to', 'of another size')}{f' ({size})' if size else ''}"


def why_slurm_stopped(stop_request: Event) -> str:
    """Why Slurm told a job to stop, by its signal and the time that was left."""
    if stop_request.get("signal") != "SIGUSR2":
        return PREEMPTED_OR_CANCELED
    left = stop_request.get("seconds_left")
    if not isinstance(left, int | float):
        return "preempted, or near the time limit"
    return "near the time limit" if left < NEAR_THE_LIMIT_SECONDS else "preempted"


def why_failed(event: Event) -> str:
    """`rank 2 on n1: ended with SIGKILL`, without the lines of the log that may follow."""
    reason = str(event.get("reason", event.get("error", event.get("why", "")))).strip()
    reason = reason.splitlines()[0] if reason else ""
    rank, node = event.get("rank"), event.get("node")
    if isinstance(rank, int) and rank >= 0 and event.get("kind") != "user":
        return f"rank {rank}{f' on {node}' if node else ''}: {reason}"
    return reason
