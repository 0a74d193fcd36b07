"""The jobs of one run that were submitted together, one for each size, as the ledger records them.

The event "submitted" has the id of the first one as `job`, and all of them as `candidates` if there are several:

    {"event": "submitted", "job": "12", "candidates": [{"job": "12", "nodes": 1, "gpus": 4, "gpu_type": ""}, …]}
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vit.run.folder import Event


@dataclass(frozen=True)
class Candidate:
    """One of the jobs.  At most one of them, the owner, trains at a time."""

    job: str  # Slurm's id; `12_3` for a task of an array
    nodes: int
    gpus: int  # ranks per node
    gpu_type: str = ""  # as in JobSpec

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.nodes * self.gpus

    @property
    def size(self) -> str:
        """`4 GPUs`, `2 x 4 a100 GPUs`: its size in messages."""
        return size_text(self.nodes, self.gpus, self.gpu_type)


def candidates(events: Sequence[Event]) -> list[Candidate]:
    """The jobs of the newest submission, in the order of submission.

    Empty if the run was not submitted to Slurm, or as a single job.  What is damaged is left out.
    """
    listed = newest_submission(events).get("candidates", ())
    known = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [
        Candidate(str(each["job"]), each["nodes"], each["gpus"], each.get("gpu_type", ""))
        for each in known
        if "job" in each and isinstance(each.get("nodes"), int) and isinstance(each.get("gpus"), int)
    ]


def job_ids(events: Sequence[Event]) -> list[str]:
    """The ids of the jobs of the newest submission; a single one if there are no candidates."""
    newest = newest_submission(events)
    return [each.job for each in candidates(events)] or ([str(newest["job"])] if newest else [])


def newest_submission(events: Sequence[Event]) -> Event:
    """The newest event of a submission to Slurm; empty if there is none."""
    return next((e for e in reversed(events) if e["event"] == "submitted" and "job" in e), {})


def size_text(nodes: int, gpus: int, gpu_type: str = "") -> str:
    """`4 GPUs`, `2 x 4 a100 GPUs`: a size in messages."""
    several = f"{nodes} x " if nodes > 1 else ""
    return f"{several}{gpus} {gpu_type + ' ' if gpu_type else ''}GPU{'s' if gpus > 1 or nodes > 1 else ''}"
