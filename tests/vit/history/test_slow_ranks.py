"""When and where ranks were slow, from the events of a run; and the note on it."""

from typing import Any

from vit.history.notes import notes
from vit.history.run_history import RunHistory
from vit.history.slow_ranks import slow_now, slow_times

from .test_notes import attempt, history


def event(name: str, time: float, rank: int = 3, **values: Any) -> dict[str, Any]:
    """An event of rank 3 on n2, which waits for images."""
    place = {"rank": rank, "node": "n2", "gpu": "", "what": "data", "ratio": 1.6, "seconds": 0.31, "others": 0.02}
    return {"event": name, "time": time} | (place if "rank" in name else {}) | values


EVENTS = [
    event("started", 10),
    event("slow rank", 100),
    event("slow rank", 160, what="update"),
    event("rank recovered", 200),
    event("slow rank", 300, rank=1),
    event("stopped", 900),
    event("started", 1000),
    event("slow rank", 1100),
]


def test_a_rank_is_slow_until_it_recovers_or_its_attempt_ends() -> None:
    """What it was slow at is what it was slow at last."""
    found = [(each.rank, each.event["what"], each.began, each.ended, each.recovered) for each in slow_times(EVENTS)]
    assert found == [(3, "update", 100, 200, True), (1, "data", 300, 900, False), (3, "data", 1100, None, False)]
    assert [each["time"] for each in slow_now(EVENTS)] == [1100]
    assert slow_now([*EVENTS, event("restarting in place", 1200)]) == []


def test_events_that_are_damaged_are_left_out() -> None:
    """A rank that is no number, or recovers without having been slow."""
    damaged = [
        event("slow rank", 1, rank="x"),
        event("rank recovered", 2),
        event("slow rank", 3, ratio="x") | {"time": None},
    ]
    assert [each.began for each in slow_times(damaged)] == [0.0]
    assert len(notes(RunHistory(events=damaged))) <= 1


def test_a_rank_that_was_slow_for_minutes_is_a_note() -> None:
    """The one that was slow for longest, with its node, what it is slow at, and where to look."""
    (note,) = notes(history(attempt(), events=EVENTS))
    assert note.startswith("for 43:20 (and 1 other rank), rank 3 on n2 is slow: 1.60 times the median; it waits for ")
    assert "images 0.310 s of each step, others 0.020 s: see whether other processes use the cores of n2" in note
    assert "--exclude-slow" in note
    (note,) = notes(history(attempt(), events=[*EVENTS[:2], event("stopped", 600)]))
    assert note.startswith("for 8:20, rank 3 on n2")
    assert notes(history(attempt(), events=[*EVENTS[:2], event("stopped", 300)])) == []
