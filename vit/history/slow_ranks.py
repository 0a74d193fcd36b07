"""Which ranks of a run were slower than the others, from the events that rank 0 recorded.  Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from vit.history.learning_curve import integer, number
from vit.run.folder import Event
from vit.run.rank_log import RECOVERED, SLOW

# Events after which the ranks of an attempt are gone.
_ENDS = {"submitted", "supervising", "started", "stopped", "finished", "failed", "gave up"}
_ENDS |= {"requeueing", "restarting in place"}
_SLOW_EVENTS = (SLOW, RECOVERED)


@dataclass(frozen=True)
class SlowTime:
    """A time in which a rank was slow."""

    event: Event  # its last one: what it was slow at, and how slow
    began: float  # time.time() at which it was noticed
    ended: float | None  # None if it is still slow
    recovered: bool  # else it was slow to the end of the attempt

    @property
    def rank(self) -> int:
        """The number of the rank."""
        return integer(self.event, "rank") or 0

    @property
    def node(self) -> str:
        """The name of its node."""
        return str(self.event.get("node", ""))


def slow_times(events: Sequence[Event]) -> list[SlowTime]:
    """All times in which a rank was slow, by their ends; then those of the ranks that are slow now."""
    out: list[SlowTime] = []
    now: dict[int, SlowTime] = {}
    for event in events:
        name = event["event"]
        if name not in _SLOW_EVENTS and not (now and name in _ENDS):
            continue
        at, rank = number(event, "time") or 0.0, integer(event, "rank")
        if name in _ENDS:
            out += [SlowTime(each.event, each.began, at, recovered=False) for each in now.values()]
            now.clear()
        elif name == SLOW and rank is not None:
            now[rank] = SlowTime(event, now[rank].began if rank in now else at, None, recovered=False)
        elif name == RECOVERED and rank in now:
            before = now.pop(rank)
            out.append(SlowTime(before.event, before.began, at, recovered=True))
    return out + list(now.values())


def slow_now(events: Sequence[Event]) -> list[Event]:
    """The newest event of each rank that is slow now."""
    return [each.event for each in slow_times(events) if each.ended is None]


def slow_nodes(events: Sequence[Event], seconds: float, now: float) -> list[str]:
    """Nodes with a rank that was slow for so many seconds, up to the end of its attempt or to now (time.time()).

    A rank that was slow on several nodes has more to do than the others; no node is the cause.
    """
    long = [each for each in slow_times(events) if not each.recovered and (each.ended or now) - each.began >= seconds]
    nodes = {rank: {each.node for each in long if each.rank == rank} for rank in {each.rank for each in long}}
    return sorted({node for found in nodes.values() if len(found) == 1 for node in found if node})
