"""What the ledger says about the jobs of a submission, and about a run that one of them hands over to another."""

from typing import Any

from vit.run.counts import counted
from vit.run.folder import Event


def jobs_of(submitted: Event) -> set[str]:
    """The ids of all jobs of a `submitted` event: one, or one for each size of the run; none without Slurm."""
    others = submitted.get("candidates")
    each = [submitted, *(others if isinstance(others, list) else [])]
    return {str(one["job"]) for one in each if isinstance(one, dict) and "job" in one}


def why_handed_over(handover: Event, device: str) -> str:
    """`handed over to job 13 (4 GPUs)`."""
    ranks: Any = handover.get("ranks")
    what = "rank" if device == "cpu" else "GPU"
    size = f" ({counted(ranks, what)})" if isinstance(ranks, int) else ""
    return f"handed over to job {handover.get('to', 'of another size')}{size}"


def why_failed(event: Event) -> str:
    """`rank 2 on n1: ended with SIGKILL`, without the lines of the log that may follow."""
    reason = str(event.get("reason", event.get("error", event.get("why", "")))).strip()
    reason = reason.splitlines()[0] if reason else ""
    rank, node = event.get("rank"), event.get("node")
    if isinstance(rank, int) and rank >= 0 and event.get("kind") != "user":
        return f"rank {rank}{f' on {node}' if node else ''}: {reason}"
    return reason
