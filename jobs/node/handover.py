"""Whether a run gains by moving to another of its jobs: from speeds and restarts that were measured in this run."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from jobs.node.candidates import Candidate
from jobs.node.ownership import Answer, Claim
from vit.history.learning_curve import number, training
from vit.run.counts import counted
from vit.run.folder import Event
from vit.run.jsonl import Record

RESUME_SECONDS = 60.0  # from the start of a job to its first step, if no attempt of this run has measured it
NEWEST = 20  # records of an attempt from which its speed is taken

Size = tuple[int, str]  # ranks and type of GPU: those on which the speed depends


@dataclass(frozen=True)
class Measured:
    """What the attempts of a run have shown so far."""

    speeds: dict[Size, float]  # images/s of the newest attempt of each size
    resume_seconds: float  # from the claim of a job, or the start of a process, to its first step
    seconds_left: float | None  # at the speed of the newest record; None if nothing was trained yet
    left_at: Size | None = None  # the size of the newest record


def measure(events: Sequence[Event], records: Sequence[Record], claims: Sequence[Claim]) -> Measured:
    """Reads what was measured from the ledger, the learning curve and the claims of a run."""
    starts = [event for event in events if event["event"] == "started" and number(event, "time") is not None]
    trained = [record for record in training(records) if number(record, "time") is not None]
    speeds: dict[Size, float] = {}
    resumes = []
    newest: Size | None = None
    before = 0.0
    for start, after in zip_longest(starts, starts[1:]):
        end = after["time"] if after else math.inf
        mine = [record for record in trained if start["time"] <= record["time"] < end]
        measured = [speed for record in mine[-NEWEST:] if (speed := number(record, "images_per_second"))]
        size = _size_at(start, claims)
        if measured:
            speeds[size] = statistics.median(measured)
            newest = size
        resumes.append(_resume_seconds(start, before, claims) + (_seconds(mine[0], "compile") if mine else 0.0))
        before = start["time"]
    left = number(trained[-1], "seconds_left") if trained else None
    if left is not None:
        left = max(0.0, left - max(0.0, time.time() - trained[-1]["time"]))
    return Measured(speeds, statistics.median(resumes[-3:]) if resumes else RESUME_SECONDS, left, newest)


def _resume_seconds(start: Event, before: float, claims: Sequence[Claim]) -> float:
    """From the claim of the job that began this attempt to its first batch: its imports and checks take time, too.

    After a restart in place, or without a claim, from the start of the rank's process.  `before` is the last attempt.
    """
    claimed = [claim.time for claim in claims if before < claim.time <= start["time"]]
    rank = _seconds(start, "start", "compile", "other")
    return max(rank, start["time"] - claimed[-1]) if claimed else rank


def _size_at(start: Event, claims: Sequence[Claim]) -> Size:
    """The size of the attempt that this event began."""
    owners = [claim for claim in claims if claim.time <= start["time"]]
    return int(start.get("ranks", 1)), owners[-1].size.gpu_type if owners else ""


def _seconds(record: Record, *phases: str) -> float:
    seconds = record.get("seconds")
    return sum(number(seconds, phase) or 0.0 for phase in phases) if isinstance(seconds, dict) else 0.0


def gain_seconds(measured: Measured, owner: Candidate, other: Candidate) -> float | None:
    """How much sooner the run ends if it moves from the owner to another job that has just started; may be negative.

    None if nothing was trained yet.  A size that the run was not trained on is taken to be as fast per rank.
    """
    if measured.seconds_left is None or measured.left_at is None:
        return None
    per_rank = measured.speeds[measured.left_at] / measured.left_at[0]
    images = measured.seconds_left * measured.speeds[measured.left_at]
    stay, go = (
        images / measured.speeds.get((each.ranks, each.gpu_type), per_rank * each.ranks) for each in (owner, other)
    )
    return stay - (go + measured.resume_seconds)


def decide(measured: Measured, owner: Candidate, other: Candidate, min_gain_minutes: float) -> Answer:
    """The owner's answer to another job."""
    gain = gain_seconds(measured, owner, other)
    if gain is None:
        larger = other.ranks > owner.ranks
        return Answer(larger, f"{counted(other.ranks, 'rank')} instead of {owner.ranks}, and nothing is trained yet")
    if gain <= 0:
        return Answer(False, f"{other.size} would not be faster than {owner.size}")
    minutes = f"the run would end {gain / 60:.1f} minutes sooner on {other.size}"
    if gain < 60 * min_gain_minutes:
        return Answer(False, f"{minutes}, which is less than --min-gain {min_gain_minutes:g}")
    return Answer(True, minutes)
