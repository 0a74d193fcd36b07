"""The attempts of a run: when each began and ended, why, and what it did.  Read from the ledger; imports no torch.

The ledger alone suffices for attempts that have ended.  One that was killed without a word is described by the next
one: its `started` event contains the last record of the learning curve before it (`previous`) and the seconds of the
steps that are repeated (`lost`).  Ledgers of older versions lack these, so less is known of their killed attempts.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from vit.history.submissions import PREEMPTED_OR_CANCELED, jobs_of, why_failed, why_handed_over, why_slurm_stopped
from vit.run.folder import Event
from vit.run.jsonl import Record

Ending = Literal["running", "finished", "stopped", "failed", "killed"]
SUPERVISOR_LOST = "the supervisor was lost, and the ranks saved"


@dataclass(kw_only=True)
class Attempt:
    """One life of the processes of a run.  Times are Unix times in seconds."""

    number: int  # from 1
    began: float  # a job or the supervisor started it; without a supervisor, its process began
    job: str = ""  # job and restart count, `123.0`; empty without a supervisor
    node: str = ""  # the first node
    queued: float = 0.0  # seconds that it waited in the queue
    idle: float = 0.0  # seconds before it in which the run was neither queued nor running
    started: float | None = None  # it was ready for its first step; None if it did not get there
    seen: float = 0.0  # the last time that it wrote anything
    ended: float | None = None  # None while it runs; of a killed attempt, when it was last seen
    ending: Ending = "running"
    why: str = ""  # why it ended, in words
    first_step: int | None = None  # it resumed at this step
    last_step: int | None = None  # the last step that it is known to have reached
    lost_steps: int = 0  # of its steps, those that were repeated
    ranks: int | None = None
    device: str = ""  # name of the GPU, or "cpu"
    at_start: float = 0.0  # seconds from the beginning of the process of rank 0 until `started`
    seconds: dict[str, float] = field(default_factory=dict)  # by phase (vit/run/heartbeat.py), as far as recorded
    lost: dict[str, float] = field(default_factory=dict)  # by phase: the part of `seconds` that was repeated

    @property
    def duration(self) -> float:
        """Seconds from its beginning to its end; while it runs, until it was last seen."""
        return max((self.ended or self.seen) - self.began, sum(self.seconds.values()))


def read_attempts(events: Sequence[Event], newest: Record | None = None) -> list[Attempt]:
    """The attempts of a run, oldest first, from its events and the newest record of its learning curve.

    The last attempt is "running" if the ledger does not say that it ended: whether its processes still exist is not
    known here (jobs ask Slurm).  Events with missing or unknown fields are tolerated.
    """
    reader = _Reader()
    for event in events:
        if _is_time(event.get("time")):
            reader.read(event)
    current = reader.current
    if current is not None and current.ending == "running" and newest is not None:
        seconds, time = newest.get("seconds"), newest.get("time", 0)
        if isinstance(seconds, dict) and _is_time(time) and time >= (current.started or current.began):
            current.seconds, current.last_step = _numbers(seconds), _step(newest)
            current.seen = max(current.seen, time)
    return reader.attempts


def mark_killed(attempt: Attempt) -> None:
    """Says of an attempt that seems to run that its processes no longer exist."""
    attempt.ending, attempt.ended, attempt.why = "killed", attempt.seen, "killed from outside"


class _Reader:
    """Reads events in order; `current` is the attempt that runs or ended last."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.current: Attempt | None = None
        self.waiting: float | None = None  # since when a job waits in the queue
        self.idle_since: float | None = None  # the end of the last attempt
        self.stop_request: Event = {}  # the `told to stop` of the current attempt
        self.canceled = ""  # "canceled" or "preempted", if one of the jobs of the current attempt's submission was
        self.stopped: Event = {}  # the newest `stopped`
        self.slurm_jobs: set[str] = set()
        self.candidates: set[str] = set()  # the jobs of the newest submission: any of them may run next
        self.handover: Event = {}  # the `handover` of the current attempt to another one of them
        self.newest = 0.0  # time of the last event
        self._handlers = {
            "submitted": self._submitted,
            "supervising": self._supervising,
            "started": self._started,
            "rolled back": self._rolled_back,
            "told to stop": self._told_to_stop,
            "handover": self._handed_over,
            **dict.fromkeys(("canceled", "preempted"), self._canceled),
            **dict.fromkeys(("stopped", "finished"), self._ended),
            **dict.fromkeys(("failed", "restarting in place", "requeueing", "gave up"), self._failed),
        }

    def read(self, event: Event) -> None:
        """Takes one event into account."""
        if event["event"] == "estimated":  # by the command that submits, whatever an earlier attempt does
            return
        handler = self._handlers.get(event["event"])
        if handler is not None:
            handler(event)
        elif self.current is not None and self.current.ending == "running":
            self.current.seen = event["time"]
        self.newest = event["time"]

    def _begin(self, event: Event, began: float, job: str = "", node: str = "") -> Attempt:
        """A new attempt; one that seems to run was killed."""
        self._close_killed()
        attempt = Attempt(number=len(self.attempts) + 1, began=began, job=job, node=node, seen=event["time"])
        if self.waiting is not None:
            attempt.queued = max(0.0, began - self.waiting)
        if self.idle_since is not None:
            attempt.idle = max(0.0, (began if self.waiting is None else self.waiting) - self.idle_since)
        self.attempts.append(attempt)
        self.current, self.stop_request, self.handover, self.canceled = attempt, {}, {}, ""
        self.waiting = self.idle_since = None
        return attempt

    def _close_killed(self) -> None:
        if self.current is not None and self.current.ending == "running":
            mark_killed(self.current)
            if self.stop_request:
                self.current.why = "told to stop, but killed before it had saved"
            if self.handover:
                self.current.why = (
                    f"{why_handed_over(self.handover, self.current.device)}, but killed before it had saved"
                )
            self.idle_since = self.current.ended

    def _submitted(self, event: Event) -> None:
        self._close_killed()
        if self.current is not None:
            self.current.why = self.current.why.replace(PREEMPTED_OR_CANCELED, "canceled")
        self.waiting = event["time"]
        self.candidates = jobs_of(event)
        self.slurm_jobs |= self.candidates

    def _supervising(self, event: Event) -> None:
        self._close_killed()
        job = str(event.get("life", ""))
        same_submission = {_id(job)} if _id(job) not in self.candidates else self.candidates
        if self.waiting is None and self.current is not None and _id(self.current.job) in same_submission:
            self.waiting = self.idle_since = self.current.ended  # requeued, or another size: it waits from its end on
            self.current.why = self.current.why.replace(PREEMPTED_OR_CANCELED, "preempted")
        began = event.get("began")  # of the job's process, before its imports
        began = min(event["time"], max(began, self.newest)) if _is_time(began) else event["time"]
        self._begin(event, began, job, str(event.get("node", "")))

    def _started(self, event: Event) -> None:
        own = _numbers(event.get("seconds"))
        if self.current is None or self.current.ending != "running" or self.current.started is not None:
            self._begin(event, event["time"] - sum(own.values()))  # without a supervisor
        attempt = self.current
        assert attempt is not None
        attempt.started, attempt.seconds, attempt.at_start = event["time"], own, sum(own.values())
        attempt.first_step = attempt.last_step = _step(event)
        ranks = event.get("ranks")
        attempt.ranks = ranks if isinstance(ranks, int) else None
        attempt.device = str(event.get("device_name", event.get("device", "")))
        attempt.seen = event["time"]
        self._complete_previous(event, attempt)

    def _complete_previous(self, event: Event, attempt: Attempt) -> None:
        """Adds to the attempt before what the new one found in the learning curve."""
        before = next((a for a in itertools.islice(reversed(self.attempts), 1, None) if a.started is not None), None)
        if before is None:
            return
        ended = before.ended or 0.0
        after, record = self.attempts[before.number], event.get("previous")
        record = record if isinstance(record, dict) else {}
        time = record.get("time")
        if _is_time(time) and (before.started or 0) <= time <= after.began:
            _see(before, record)
            later = (before.ended or 0.0) - ended  # it ended later than was known: less time passed until the next one
            after.queued, after.idle = max(0.0, after.queued - later), max(0.0, after.idle - later)
        if before.last_step is not None and attempt.first_step is not None:
            before.lost_steps += max(0, before.last_step - attempt.first_step)
        _add(before.lost, _numbers(event.get("lost")))

    def _rolled_back(self, event: Event) -> None:
        attempt, reached, step = self.current, event.get("reached"), _step(event)
        if attempt is None or attempt.ending != "running":
            return
        attempt.seen = event["time"]
        _add(attempt.lost, _numbers(event.get("lost")))
        if isinstance(reached, int) and step is not None:
            attempt.lost_steps += max(0, reached - step)
            attempt.last_step = step

    def _told_to_stop(self, event: Event) -> None:
        """Recorded by a thread of the supervisor, maybe a moment after the ranks have stopped."""
        self.stop_request = event
        if self.current is not None and self.current.ending == "running":
            self.current.seen = event["time"]
        elif self.current is not None and self.current.ending == "stopped" and self.current.job == event.get("life"):
            self.current.why = self._why_stopped(self.stopped)

    def _handed_over(self, event: Event) -> None:
        """Recorded by the supervisor before the ranks stop."""
        if self.current is not None and event.get("life", self.current.job) == self.current.job:
            self.handover = event
            self.current.seen = event["time"] if self.current.ending == "running" else self.current.seen

    def _canceled(self, event: Event) -> None:
        """Somebody canceled one of the jobs of the run, and with it all of them; or Slurm did, at a preemption."""
        self.canceled = event["event"]
        if self.current is not None:
            self.current.why = self.current.why.replace(PREEMPTED_OR_CANCELED, self.canceled)

    def _ended(self, event: Event) -> None:
        attempt = self.current
        if attempt is None or attempt.ending != "running":  # of a preparation, or a stop before the first step
            return
        attempt.ending = "finished" if event["event"] == "finished" else "stopped"
        attempt.ended = event["time"]
        attempt.seconds = _numbers(event.get("seconds")) or attempt.seconds
        reached = _step(event)
        if reached is not None and attempt.started is not None:
            attempt.last_step = max(reached, attempt.last_step or 0)
        self.stopped = event
        attempt.why = "finished" if attempt.ending == "finished" else self._why_stopped(event)
        self.idle_since = event["time"]

    def _why_stopped(self, event: Event) -> str:
        assert self.current is not None
        if self.handover or "unsaved" in event:
            by_itself = why_handed_over(self.handover, self.current.device)
            return f"stopped; {event['unsaved']}" if "unsaved" in event else by_itself
        if self.current.job and not self.stop_request:
            return SUPERVISOR_LOST
        if _id(self.current.job) not in self.slurm_jobs:
            return "stopped by the user"
        return self.canceled or why_slurm_stopped(self.stop_request)

    def _failed(self, event: Event) -> None:
        """The failure of a rank, what the supervisor decided, or why it gave up: in this order."""
        attempt, name = self.current, event["event"]
        if attempt is None or (name == "failed" and attempt.ending == "failed"):  # of another rank: a consequence
            return
        if attempt.ending in ("running", "failed"):
            attempt.ending, attempt.ended = "failed", event["time"]
            attempt.why = why_failed(event) or attempt.why
            attempt.seconds = _numbers(event.get("seconds")) or attempt.seconds
            if (step := _step(event)) is not None and attempt.started is not None:
                attempt.last_step = max(step, attempt.last_step or 0)
        self.idle_since = event["time"]
        if name == "restarting in place":
            self._begin(event, event["time"], attempt.job, attempt.node)
        if name == "requeueing":
            self.waiting = event["time"]


def _see(attempt: Attempt, record: Record) -> None:
    """The last record of the learning curve that an attempt wrote."""
    step = _step(record)
    if step is not None:
        attempt.last_step = max(step, attempt.last_step or 0)
    if attempt.ending in ("failed", "killed"):
        recorded = _numbers(record.get("seconds"))
        if sum(recorded.values()) > sum(attempt.seconds.values()):
            attempt.seconds = recorded
        if attempt.ending == "killed":
            attempt.seen = attempt.ended = max(attempt.seen, record["time"])


def _id(job: str) -> str:
    """`123.0` -> `123`."""
    return job.rpartition(".")[0]


def _is_time(value: object) -> TypeGuard[float]:
    """Whether this is a Unix time, and not the result of damage."""
    return isinstance(value, int | float) and 0 <= value < 1e11


def _step(event: dict[str, Any]) -> int | None:
    step = event.get("step")
    return step if isinstance(step, int) and 0 <= step < 1e15 else None


def _numbers(values: object) -> dict[str, float]:
    """The numbers of a dictionary by name; empty if it is none."""
    items = values.items() if isinstance(values, dict) else ()
    return {str(name): float(value) for name, value in items if isinstance(value, int | float) and 0 <= value < 1e11}


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value
