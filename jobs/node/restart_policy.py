"""Decides whether and where a failed run continues, from the events in its ledger, over all requeues."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from vit.history.slow_ranks import slow_nodes
from vit.history.submissions import since_submitted
from vit.history.wrong_arithmetic import times_found, wrong_nodes
from vit.run.counts import counted
from vit.run.folder import Event

# In this order, each kind is more likely the root cause than those after it.
Kind = Literal["user", "unhealthy", "stalled", "exception", "signal", "node", "secondary"]
PAUSE_SECONDS = 5.0  # before the first restart after a file could not be read; three times as long at each further one
_FILE_ERROR = re.compile(r"\[Errno \d+\]")
CAUSE_ORDER: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class RetryLimits:
    """How often a run may fail before its next checkpoint; each new checkpoint resets all counts but the last."""

    restarts: int = 3  # in place, in one start of the job; then it is requeued
    requeues: int = 3  # because of failures; then the run is given up
    same_step: int = 2  # failures at the same step; then it is given up at once
    node_failures: int = 2  # of a node, not reset by checkpoints; then it is excluded at the next requeue
    exclude_slow: bool = False  # whether a requeue excludes nodes whose ranks are slower than the others
    slow_seconds: float = 60.0  # for which a rank must have been reported as slow, for that


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended: the first rank that failed, as far as is known."""

    kind: Kind
    node: str
    rank: int  # -1 if it is the node that failed, not a rank
    reason: str
    step: int | None = None  # the step it failed in; None before the first one
    suspects: tuple[str, ...] = ()  # if ranks differed in their results: the nodes to exclude because of that
    steps: int = 0  # of a stalled rank: the steps that it began; -1 if it was stopped by SIGSTOP
    time: float = 0.0  # time.time()
    tail: str = ""  # the last lines of its log
    log: str = ""  # path of the log

    def message(self) -> str:
        """The failure for a person, with the last lines of the rank's log."""
        if self.rank < 0:
            return self.reason
        if self.kind == "user":
            return f"{self.reason}\nfull log: {self.log}"
        where = "" if self.step is None else f" at step {self.step:,}"
        tail = f"\n{self.tail}" if self.tail else ""
        return f"rank {self.rank} on {self.node}{where}: {self.reason}{tail}\nfull log: {self.log}"

    def event(self) -> dict[str, Any]:
        """The fields for the ledger, where each event already has a time."""
        return {name: value for name, value in asdict(self).items() if name not in {"time", "tail", "log", "steps"}}


@dataclass(frozen=True)
class Decision:
    """What to do after a failure."""

    what: Literal["restart", "requeue", "give up"]
    why: str
    exclude: tuple[str, ...] = ()
    pause: float = 0.0  # seconds before a restart


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The root cause among the failures of all nodes; lost connections are secondary failures.

    Of several stalled nodes it is the one with the fewest steps, for which the others wait; unknown if they are equal.
    """
    cause = min(failures, key=lambda f: (CAUSE_ORDER.index(f.kind), f.steps, f.time))
    equal = sorted({f.node for f in failures if f.kind == cause.kind == "stalled" and f.steps == cause.steps})
    return replace(cause, node=" or ".join(equal)) if len(equal) > 1 else cause


def decide(events: Sequence[Event], failure: Failure, limits: RetryLimits, start_id: str, in_slurm: bool) -> Decision:
    """What to do after a failure that is not yet in the ledger's events.  `start_id` names this start of the job."""
    if failure.kind == "user":
        return Decision("give up", "not retrying: a retry would fail the same way")
    before = failed_attempts(since_progress(events))
    same = [e for e in before if _is_repeat(e, failure)]
    if why := _reason_to_give_up(same, failure, limits):
        return Decision("give up", why)
    here = [e for e in before if e["event"] == "restarting in place" and e.get("life") == start_id]
    unreadable = failure.step is None and _FILE_ERROR.search(failure.reason) is not None
    try_elsewhere = failure.kind == "exception" and failure.step is None and 1 + len(same) >= limits.same_step
    try_elsewhere = try_elsewhere and (in_slurm or not unreadable)
    if failure.kind not in {"node", "unhealthy"} and len(here) < limits.restarts and not try_elsewhere:
        pause = PAUSE_SECONDS * 3 ** len(here) if unreadable else 0.0  # a file server may respond again soon
        why = f"restart {len(here) + 1} of {limits.restarts} without a new checkpoint"
        return Decision("restart", why + (f", in {pause:.0f} s" if pause else ""), pause=pause)
    if not in_slurm:
        return Decision("give up", f"{counted(1 + len(here), 'attempt')} failed without a new checkpoint")
    requeues = sum(e["event"] == "requeueing" for e in before)
    if requeues >= limits.requeues:
        return Decision(
            "give up",
            f"{counted(1 + len(before), 'attempt')} on {counted(1 + requeues, 'start')} of the job made no checkpoint",
        )
    unhealthy = {failure.node} if failure.kind == "unhealthy" and _is_known(failure.node) else set()
    why = f"requeue {requeues + 1} of {limits.requeues} without a new checkpoint"
    exclude = [*sorted(unhealthy), *nodes_to_exclude(events, limits, failure.node)]
    return Decision("requeue", why, tuple(dict.fromkeys(exclude)))


def decide_after_wrong_arithmetic(
    events: Sequence[Event], failure: Failure, limits: RetryLimits, other_nodes: bool
) -> Decision:
    """What to do after ranks differed: other nodes compute the step again; if there are none, the same ones do."""
    where = " and ".join(failure.suspects)
    if other_nodes:
        requeues = sum(e["event"] == "requeueing" for e in failed_attempts(since_progress(events)))
        if requeues >= limits.requeues:
            starts = f"{counted(1 + requeues, 'start')} of the job"
            return Decision("give up", f"wrong values were computed on {starts} without a new checkpoint in between")
        exclude = dict.fromkeys([*failure.suspects, *nodes_to_exclude(events, limits)])
        return Decision("requeue", "the step is computed again on other nodes", tuple(exclude))
    found = max(1, times_found(since_submitted(events, "gave up"), failure.suspects))
    if found > limits.restarts:
        times = f"wrong values were computed {found} times on {where} since the run was submitted"
        return Decision("give up", f"{times}: have its GPUs and memory tested, and continue elsewhere")
    return Decision("restart", f"no other node can be used; wrong values here so far: {counted(found, 'time')}")


def _is_repeat(event: Event, failure: Failure) -> bool:
    """Whether an earlier attempt failed at the same step or, before the first one, by the same exception."""
    if failure.step is not None or event.get("step") is not None:
        return event.get("step") == failure.step
    return failure.kind == "exception" and _normalized(str(event.get("reason"))) == _normalized(failure.reason)


def _normalized(reason: str) -> str:
    """An exception without numbers that may differ each time, such as addresses, process ids and free bytes."""
    return re.sub(r"0x[0-9a-f]+|[\d.]+", "", reason)


def _reason_to_give_up(same: Sequence[Event], failure: Failure, limits: RetryLimits) -> str:
    """Why another attempt would be useless, after `same` attempts that failed in the same way; "" if it may help."""
    count = f"{counted(1 + len(same), 'attempt')} failed"
    if failure.step is not None:
        end = f"{count} at step {failure.step:,}, without a new checkpoint in between"
        return end if 1 + len(same) >= limits.same_step else ""
    requeues = sum(e["event"] == "requeueing" for e in same)
    end = f"{count} in the same way before their first step, on {counted(1 + requeues, 'start')} of the job"
    return end if same and requeues >= limits.same_step else ""


def nodes_to_exclude(events: Sequence[Event], limits: RetryLimits, *just_failed: str) -> list[str]:
    """Nodes that computed wrong values, or failed too often, since the run was submitted or given up.

    Those that `just_failed` count too.  Then, with `exclude_slow`, those with a slow rank: if too few other nodes are
    left, the last ones are not excluded.
    """
    since = since_submitted(events, "gave up")
    failures = Counter([str(e.get("node")) for e in failed_attempts(since)] + list(just_failed))
    failing = sorted(node for node, count in failures.items() if count >= limits.node_failures and _is_known(node))
    slow = slow_nodes(since, limits.slow_seconds, time.time()) if limits.exclude_slow else []
    return list(dict.fromkeys([*wrong_nodes(since), *failing, *slow]))


def _is_known(node: str) -> bool:
    """Whether this is a node's name: "n1 or n2" and "another node" are not."""
    return " " not in node


def failed_attempts(events: Sequence[Event]) -> list[Event]:
    """One event for each failed attempt; several nodes of one attempt may each have recorded a requeue."""
    requeued = {e.get("life"): e for e in events if e["event"] == "requeueing"}
    return [*requeued.values(), *(e for e in events if e["event"] == "restarting in place")]


def count_silent_starts(events: Sequence[Event]) -> int:
    """How many of the latest starts, in a row, recorded neither an end nor a checkpoint: killed from outside."""
    relevant = {"supervising", "told to stop", "stopped", "requeueing", "restarting in place", "finished"}
    last = [e["event"] for e in since_progress(events) if e["event"] in relevant]
    count = 0
    while last and last.pop() == "supervising":
        count += 1
    return count


def since_progress(events: Sequence[Event]) -> list[Event]:
    """The events since the last checkpoint that got further than all before, or since a submission or giving up."""
    furthest, start = -1, 0
    for i, event in enumerate(events):
        if event["event"] in {"submitted", "gave up"} or (event["event"] == "checkpoint" and event["step"] > furthest):
            start = i + 1
        if event["event"] == "checkpoint":
            furthest = max(furthest, event["step"])
    return list(events[start:])
