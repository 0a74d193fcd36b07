"""The jobs of a run in Slurm's queue: one, or one for each size in which the run was submitted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.node.candidates import Candidate, candidates, job_ids
from jobs.slurm.states import DEFERRED
from jobs.slurm.tables import QueuedJob
from vit.run.folder import Event

NOT_KNOWN = ("", "N/A")  # of squeue's columns


@dataclass(frozen=True, kw_only=True)
class CandidateState:
    """One of the jobs of a run that was submitted in several sizes."""

    job: str
    size: str  # `4 GPUs`
    ranks: int
    state: str  # running, pending, ended; Slurm's own word in lower case for others
    reason: str = ""  # why it is pending, or where it runs
    owns: bool = False  # whether it trains, or was the last one to do so
    eligible: str = ""  # when it may start at the earliest, if that is later: 2026-11-28T05:43:05

    @property
    def is_running(self) -> bool:
        """Whether Slurm has started it."""
        return self.state not in ("pending", "ended")


def candidate_states(
    events: Sequence[Event], jobs: Mapping[str, QueuedJob] | None, owner: str
) -> tuple[CandidateState, ...]:
    """The jobs of the newest submission, if there are several; `owner` is the one that trained last."""
    return tuple(
        _state(each, None if jobs is None else jobs.get(each.job), jobs is not None, each.job == owner)
        for each in candidates(events)
    )


def _state(candidate: Candidate, job: QueuedJob | None, known: bool, owns: bool) -> CandidateState:
    state, reason, eligible = "ended" if known else "unknown", "", ""
    if job is not None:
        state = job.state.lower()
        reason = job.reason if state == "pending" else job.nodes
        eligible = job.starts if job.reason == DEFERRED and job.starts not in NOT_KNOWN else ""
    return CandidateState(
        job=candidate.job, size=candidate.size, ranks=candidate.ranks, state=state, reason=reason, owns=owns,
        eligible=eligible,
    )  # fmt: skip


def changed_requests(events: Sequence[Event]) -> tuple[str, ...]:
    """What the cluster has changed of the request of the newest submission, for each of its jobs that it changed."""
    ids = job_ids(events)
    changed = {str(e.get("job")): e["changed"] for e in events if e["event"] == "accepted" and "changed" in e}
    texts = {job: ", ".join(map(str, changed[job])) for job in ids if isinstance(changed.get(job), list)}
    if len(ids) == len(texts) and len({*texts.values()}) == 1:
        return (f"the cluster changed the request: {texts[ids[0]]}",)
    return tuple(f"the cluster changed the request of job {job}: {text}" for job, text in texts.items())


def queue_state(events: Sequence[Event], jobs: Mapping[str, QueuedJob], owner: str) -> tuple[str, str] | None:
    """`running` or `pending`, and where or why; None if no job of the newest submission is in the queue.

    With several sizes, the detail has the size that runs and those that would take over: `n1, 2 of 1-4 GPUs; 4 pending
    (Resources)`.
    """
    states = [each for each in candidate_states(events, jobs, owner) if each.state != "ended"]
    if not states:
        job = next((jobs[job] for job in job_ids(events) if job in jobs), None)
        if job is None:
            return None
        return ("pending", job.reason) if job.state == "PENDING" else ("running", _where(job.nodes, job.state.lower()))
    sizes = candidates(events)
    running = sorted((each for each in states if each.is_running), key=lambda each: not each.owns)
    if not running:
        return "pending", f"{_range(sizes)}: {', '.join(dict.fromkeys(each.reason for each in states))}"
    first, *others = running
    larger = [each for each in states if not each.is_running and each.ranks > first.ranks and not each.eligible]
    details = [f"{_where(first.reason, first.state)}, {_of_range(first, sizes)}"]
    details += [
        f"{_short(each)} takes over" if each.ranks > first.ranks else f"{_short(each)} starting" for each in others
    ]
    details += [f"{_short(each)} pending ({each.reason})" for each in larger]
    return "running", "; ".join(details)


def _where(nodes: str, state: str) -> str:
    return nodes if state == "running" else f"{nodes}, {state}"


def _range(sizes: Sequence[Candidate]) -> str:
    """`1-4 GPUs`; with several nodes `1-8 GPUs on 1-2 nodes`; with types of GPUs, each of them."""
    if any(size.gpu_type for size in sizes):
        return " or ".join(size.size for size in sizes)
    ranks, nodes = [size.ranks for size in sizes], [size.nodes for size in sizes]
    on = f" on {min(nodes)}-{max(nodes)} nodes" if max(nodes) > min(nodes) else ""
    return f"{min(ranks)}-{max(ranks)} GPUs{on}"


def _of_range(state: CandidateState, sizes: Sequence[Candidate]) -> str:
    typed = any(size.gpu_type for size in sizes)
    return state.size if typed else f"{state.ranks} of {_range(sizes)}"


def _short(state: CandidateState) -> str:
    """`4`, or the whole size where it is not a number of GPUs of one node and any type."""
    return state.size.removesuffix(" GPUs").removesuffix(" GPU")
