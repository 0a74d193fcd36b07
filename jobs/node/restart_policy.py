"""Whether a run that failed should go on, and where: decided by what the ledger has of it, over all requeues."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from vit.run.folder import Event

Kind = Literal["user", "sick", "stalled", "exception", "signal", "node", "echo"]
FIRST: tuple[Kind, ...] = get_args(Kind)  # what is more likely the cause of the others comes before them


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How often a run may fail before its next checkpoint; each new one makes all of this new."""

    restarts: int = 3  # in place, in one start of the job; then it is requeued
    requeues: int = 3  # because of failures; then the run is given up
    same_step: int = 2  # failures at the same step; then it is given up at once
    node_failures: int = 2  # of a node, whatever was saved between; then it is excluded at the next requeue


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended: the first rank to fail, as far as can be told."""

    kind: Kind
    node: str
    rank: int  # -1: none of them, but the node
    reason: str
    step: int | None = None  # that it was in; None before the first
    steps: int = 0  # of a rank that stood still: those that it began, -1 if somebody stopped it
    time: float = 0.0  # time.time()
    tail: str = ""  # the last lines of its log
    log: str = ""  # where the rest is

    def told(self) -> str:
        """For a person, with what the rank said last."""
        if self.rank < 0:
            return self.reason
        if self.kind == "user":
            return f"{self.reason}\nthe whole log is {self.log}"
        where = "" if self.step is None else f" at step {self.step:,}"
        tail = f"\n{self.tail}" if self.tail else ""
        return f"rank {self.rank} on {self.node}{where}: {self.reason}{tail}\nthe whole log is {self.log}"

    def event(self) -> dict[str, Any]:
        """For the ledger, where what happened has a time already."""
        return {name: value for name, value in asdict(self).items() if name not in {"time", "tail", "log", "steps"}}


@dataclass(frozen=True)
class Decision:
    """What follows from a failure."""

    what: Literal["restart", "requeue", "give up"]
    why: str
    exclude: tuple[str, ...] = ()


def first(failures: Sequence[Failure]) -> Failure:
    """The cause among what all nodes saw; lost connections are echoes of it.

    Of nodes that stand still the one that is behind makes the others wait.  It is not known where none is.
    """
    cause = min(failures, key=lambda f: (FIRST.index(f.kind), f.steps, f.time))
    alike = sorted({f.node for f in failures if f.kind == cause.kind == "stalled" and f.steps == cause.steps})
    return replace(cause, node=" or ".join(alike)) if len(alike) > 1 else cause


def decide(events: Sequence[Event], failure: Failure, budget: Budget, life: str, in_slurm: bool) -> Decision:
    """What to do about a failure that is not in the ledger's events yet.  `life` names this start of the job."""
    if failure.kind == "user":
        return Decision("give up", "another attempt would end in the same way: this is for you to mend")
    before = failed(since_progress(events))
    same = [e for e in before if _is_same(e, failure)]
    if why := _no_progress(same, failure, budget):
        return Decision("give up", why)
    here = [e for e in before if e["event"] == "restarting in place" and e.get("life") == life]
    elsewhere = failure.kind == "exception" and failure.step is None and 1 + len(same) >= budget.same_step
    if failure.kind not in {"node", "sick"} and len(here) < budget.restarts and not elsewhere:
        return Decision("restart", f"{len(here) + 1} of {budget.restarts} times without a new checkpoint")
    if not in_slurm:
        return Decision("give up", f"{1 + len(here)} attempts failed without a new checkpoint")
    requeues = sum(e["event"] == "requeueing" for e in before)
    if requeues >= budget.requeues:
        return Decision("give up", f"{1 + len(before)} attempts on {1 + requeues} starts made no checkpoint")
    sick = {failure.node} if failure.kind == "sick" and _is_named(failure.node) else set()
    why = f"{requeues + 1} of {budget.requeues} times without a new checkpoint"
    return Decision("requeue", why, tuple(sorted({*failing(events, budget, failure.node), *sick})))


def _is_same(event: Event, failure: Failure) -> bool:
    """Whether it failed at the same step, or, before the first one, by the same exception."""
    if failure.step is not None or event.get("step") is not None:
        return event.get("step") == failure.step
    return failure.kind == "exception" and _gist(str(event.get("reason"))) == _gist(failure.reason)


def _gist(reason: str) -> str:
    """An exception without what may differ each time: addresses, processes, bytes that are free."""
    return re.sub(r"0x[0-9a-f]+|[\d.]+", "", reason)


def _no_progress(same: Sequence[Event], failure: Failure, budget: Budget) -> str:
    """Why one more attempt makes no sense, after those that failed in the same way; else nothing."""
    count = f"{1 + len(same)} attempt{'s' if same else ''} failed"
    if failure.step is not None:
        end = f"{count} at step {failure.step:,}, with no checkpoint between"
        return end if 1 + len(same) >= budget.same_step else ""
    moved = sum(e["event"] == "requeueing" for e in same)
    end = f"{count} in the same way before their first step, on {1 + moved} starts of the job"
    return end if same and moved >= budget.same_step else ""


def failing(events: Sequence[Event], budget: Budget, *more: str) -> list[str]:
    """The nodes that failed so often since a person began that a requeue should leave them; `more` failed just now."""
    failures = Counter([str(e.get("node")) for e in failed(since_asked(events))] + list(more))
    return sorted(node for node, count in failures.items() if count >= budget.node_failures and _is_named(node))


def _is_named(node: str) -> bool:
    """Whether it is known which one it was: not so of "n1 or n2", or "another node"."""
    return " " not in node


def failed(events: Sequence[Event]) -> list[Event]:
    """Of these, one for each attempt that failed; each of the nodes that were left may have asked for a requeue."""
    requeued = {e.get("life"): e for e in events if e["event"] == "requeueing"}
    return [*requeued.values(), *(e for e in events if e["event"] == "restarting in place")]


def wordless(events: Sequence[Event]) -> int:
    """How many starts of the job in a row ended without a word and without a new checkpoint: killed from outside."""
    words = {"supervising", "told to stop", "stopped", "requeueing", "restarting in place", "finished"}
    last = [e["event"] for e in since_progress(events) if e["event"] in words]
    count = 0
    while last and last.pop() == "supervising":
        count += 1
    return count


def since_asked(events: Sequence[Event]) -> list[Event]:
    """The events since a person began, or began anew."""
    asked = [i for i, event in enumerate(events) if event["event"] in {"submitted", "gave up"}]
    return list(events[asked[-1] + 1 if asked else 0 :])


def since_progress(events: Sequence[Event]) -> list[Event]:
    """The events after the newest checkpoint that got further than any before, or after a person began anew."""
    furthest, start = -1, 0
    for i, event in enumerate(events):
        if event["event"] in {"submitted", "gave up"} or (event["event"] == "checkpoint" and event["step"] > furthest):
            start = i + 1
        if event["event"] == "checkpoint":
            furthest = max(furthest, event["step"])
    return list(events[start:])
