"""The attempts of a run, read from its ledger."""

import json
from typing import Any

import pytest

from vit.history.attempts import Attempt, mark_killed, read_attempts
from vit.history.time_spent import attempt_seconds, time_spent


def event(name: str, time: float, **values: Any) -> dict[str, Any]:
    """An event of the ledger, as it is read from the file."""
    found: dict[str, Any] = json.loads(json.dumps({"event": name, "time": time, **values}))
    return found


def started(time: float, step: int, start: float = 5, **values: Any) -> dict[str, Any]:
    """The ranks are ready, `start` seconds after the process of rank 0 began."""
    return event("started", time, step=step, ranks=4, device_name="NVIDIA A100", seconds={"start": start}, **values)


def record(at: int, time: float, **seconds: float) -> dict[str, Any]:
    """A record of the learning curve."""
    return {"step": at, "time": time, "seconds": seconds}


PREEMPTED = [
    event("submitted", 100, job="7"),
    event("supervising", 160, life="7.0", node="n1"),
    started(170, 0),
    event("checkpoint", 250, step=40),
    event("told to stop", 270, life="7.0", signal="SIGTERM"),
    event("stopped", 271, step=50, seconds={"start": 5, "step": 90, "data": 5, "checkpoint": 1}, signal="SIGUSR2"),
    event("supervising", 400, life="7.1", node="n2"),
    started(410, 50, previous=record(50, 270, start=5, step=90, data=5)),
    event("finished", 510, step=100, seconds={"start": 5, "step": 95, "evaluate": 5}, val_top1=0.5),
]


def test_a_preempted_run_has_two_attempts_and_waited_twice() -> None:
    """Before the first one it waited for a minute; the second one began 129 seconds after the first had saved."""
    first, second = read_attempts(PREEMPTED)
    assert (first.queued, first.duration, first.ending, first.why) == (60, 111, "stopped", "preempted")
    assert (first.first_step, first.last_step, first.lost_steps, first.node) == (0, 50, 0, "n1")
    assert (second.queued, second.idle, second.ending, second.node) == (129, 0, "finished", "n2")
    assert (second.ranks, second.device) == (4, "NVIDIA A100")
    spent = time_spent([first, second])
    assert spent.total == 510 - 100
    assert spent.seconds["queue"] == 60 + 129
    assert spent.seconds["start"] == (170 - 160) + (410 - 400)
    assert spent.seconds["step"] == 185
    assert spent.goodput == pytest.approx(185 / (111 + 110))


@pytest.mark.parametrize(
    ("signal", "seconds_left", "then", "why"),
    [
        ("SIGUSR2", 118, "supervising", "near the time limit"),
        ("SIGUSR2", 5000, "supervising", "preempted"),
        ("SIGUSR2", None, "supervising", "preempted, or near the time limit"),
        ("SIGTERM", 5000, "supervising", "preempted"),
        ("SIGTERM", 5000, "submitted", "canceled"),
        ("SIGTERM", 5000, None, "preempted or canceled"),
    ],
)
def test_the_cause_of_a_stop_is_told_by_its_signal_and_by_what_followed(
    signal: str, seconds_left: int | None, then: str | None, why: str
) -> None:
    """Slurm warns before the time limit by USR2, and ends a preempted or canceled job by TERM."""
    stop = event("told to stop", 270, life="7.0", signal=signal)
    events = [*PREEMPTED[:4], stop | ({"seconds_left": seconds_left} if seconds_left else {}), PREEMPTED[5]]
    if then is not None:
        events.append(event(then, 300, life="7.1", job="8"))
    assert read_attempts(events)[0].why == why
    late = [*events[:4], events[5], events[4], *events[6:]]  # the ranks were faster than the supervisor
    assert read_attempts(late)[0].why == why


def test_a_run_that_slurm_canceled_at_a_preemption_was_preempted_also_after_it_was_submitted_again() -> None:
    """The job recorded that; else a run that was told to stop and is submitted again was canceled by its user."""
    stop = event("told to stop", 270, life="7.0", signal="SIGTERM")
    ended = [*PREEMPTED[:4], stop, PREEMPTED[5], event("preempted", 272, life="7.0", job="7")]
    assert read_attempts(ended)[0].why == "preempted"
    assert read_attempts([*ended, event("submitted", 300, job="8")])[0].why == "preempted"


def test_the_steps_of_a_rank_that_was_killed_are_lost_until_the_checkpoint() -> None:
    """And so is the time in which the failure was not noticed yet."""
    events = [
        event("supervising", 0, life="55.0", node="here"),
        started(10, 0),
        event("restarting in place", 140, rank=2, node="here", kind="signal", reason="ended with SIGKILL", step=75),
        started(145, 40, start=3, previous=record(70, 130, start=5, step=110, data=10), lost={"step": 48, "data": 4}),
    ]
    first, second = read_attempts(events, newest=record(60, 170, start=3, step=24))
    assert (first.ending, first.why, first.lost_steps) == ("failed", "rank 2 on here: ended with SIGKILL", 35)
    assert (second.ending, second.number, second.queued, second.idle) == ("running", 2, 0, 0)
    spent = attempt_seconds(first)
    assert spent["lost"] == 48 + 4 + 10  # the last ten: from its last record to its end
    assert (spent["start"], spent["step"], spent["data"], spent["other"]) == (10, 62, 6, 0)
    assert time_spent([first, second]).seconds["step"] == 62 + 24
    assert time_spent([first, second]).total == 170


def test_a_job_whose_node_died_ended_when_it_last_wrote_anything() -> None:
    """The rest of the time until Slurm started it again counts as waiting."""
    events = [
        event("submitted", 0, job="7"),
        event("supervising", 10, life="7.0", node="n1"),
        started(20, 0),
        event("checkpoint", 60, step=40),
        event("supervising", 300, life="7.1", node="n2"),
        started(310, 40, previous=record(70, 90, start=5, step=70), lost={"step": 30}),
    ]
    first, second = read_attempts(events)
    assert (first.ending, first.why, first.ended, first.lost_steps) == ("killed", "killed from outside", 90, 30)
    assert second.queued == 300 - 90
    assert time_spent([first, second]).total == 310


def test_the_imports_of_a_job_belong_to_its_start() -> None:
    """It records itself once they are done; the clock of its node may differ from that of the node before."""
    late = PREEMPTED[6] | {"began": 392}
    assert [a.queued for a in read_attempts([*PREEMPTED[:6], late, *PREEMPTED[7:]])] == [60, 121]
    before_the_last_event = PREEMPTED[6] | {"began": 2}
    assert [a.queued for a in read_attempts([*PREEMPTED[:6], before_the_last_event, *PREEMPTED[7:]])] == [60, 0]


def test_ranks_that_stop_although_the_job_was_not_told_to_have_lost_their_supervisor() -> None:
    """It was killed; the ranks notice, save and exit."""
    assert read_attempts([*PREEMPTED[:4], *PREEMPTED[5:]])[0].why == "the supervisor was lost, and the ranks saved"


def test_a_stop_request_that_is_recorded_after_the_stop_is_its_cause() -> None:
    """Slurm may send the signal to the ranks too, which then save before the supervisor has written a line."""
    late = event("told to stop", 271.1, life="7.0", signal="SIGUSR2", seconds_left=5000)
    assert read_attempts([*PREEMPTED[:4], PREEMPTED[5], late])[0].why == "preempted"
    of_another_start = event("told to stop", 271.1, life="7.2", signal="SIGUSR2")
    assert "supervisor was lost" in read_attempts([*PREEMPTED[:4], PREEMPTED[5], of_another_start])[0].why


def test_a_stop_that_came_too_late_is_named() -> None:
    """The job was told to stop, and killed before it had saved."""
    events = [*PREEMPTED[:5], event("supervising", 400, life="7.1", node="n2")]
    assert read_attempts(events)[0].why == "told to stop, but killed before it had saved"


def test_a_run_that_was_canceled_is_idle_until_it_is_submitted_again() -> None:
    """That time is neither in the queue nor on the nodes."""
    again = [event("submitted", 900, job="8"), event("supervising", 950, life="8.0", node="n1"), started(960, 50)]
    first, second = read_attempts([*PREEMPTED[:6], *again])
    assert (first.why, second.idle, second.queued) == ("canceled", 900 - 271, 50)
    assert time_spent([first, second]).idle == 900 - 271


def test_a_run_that_is_extended_after_days_did_not_wait_in_the_queue() -> None:
    """A local run has no queue."""
    events = [
        event("supervising", 0, life="55.0", node="here"),
        started(5, 0),
        event("finished", 105, step=100, seconds={"start": 5, "step": 100}),
        event("reopened", 90_000),
        event("supervising", 90_001, life="77.0", node="here"),
    ]
    _, second = read_attempts(events)
    assert (second.queued, second.idle) == (0, 90_001 - 105)


def test_steps_that_were_rolled_back_are_lost() -> None:
    """In the same attempt."""
    events = [
        *PREEMPTED[:3],
        event("rolled back", 200, step=10, reached=18, lost={"step": 12}),
        event("finished", 271, step=50, seconds={"start": 5, "step": 92, "rollback": 4, "other": 5}),
    ]
    (attempt,) = read_attempts(events)
    assert attempt.lost_steps == 8
    assert attempt_seconds(attempt)["lost"] == 12
    assert attempt_seconds(attempt)["step"] == 80


def test_runs_without_a_supervisor_have_attempts_too() -> None:
    """Started by hand: the first was killed, the second failed, and other ranks failed in consequence."""
    events = [
        started(15, 0),
        started(115, 20, previous=record(30, 50, start=5, step=35)),
        event("failed", 130, rank=1, error="RuntimeError: shape", seconds={"start": 5, "step": 15}),
        event("failed", 131, rank=0, error="RuntimeError: connection closed", seconds={"start": 5, "step": 16}),
    ]
    first, second = read_attempts(events)
    assert (first.began, first.ended, first.ending, first.lost_steps) == (10, 50, "killed", 10)
    assert (second.began, second.why, second.idle) == (110, "rank 1: RuntimeError: shape", 60)


def test_ledgers_of_older_versions_are_read() -> None:
    """They have no `previous`, `lost`, `signal` or `device_name`."""
    events = [
        event("supervising", 0, life="55.0", node="here"),
        event("started", 10, step=0, ranks=2, device="cpu"),
        event("restarting in place", 100, rank=0, node="here", reason="ended with SIGKILL", step=30),
        event("started", 110, step=20, ranks=2, device="cpu"),
        event("told to stop", 149, life="55.0"),
        event("stopped", 150, step=40, seconds={"start": 4, "step": 40}, signal="SIGUSR2"),
    ]
    first, second = read_attempts(events)
    assert (first.lost_steps, first.device, second.why) == (10, "cpu", "stopped by the user")
    assert time_spent([first, second]).total == 150


@pytest.mark.parametrize(
    "damaged",
    [
        {"event": "started", "time": 20.0},
        {"event": "started", "time": 20.0, "step": "7", "ranks": "many", "seconds": [1], "previous": 3, "lost": "x"},
        {"event": "started", "step": 7},
        {"event": "stopped", "time": 20.0, "seconds": {"step": "long"}},
        {"event": "an event of a newer version", "time": 20.0, "step": {}},
        {"event": "rolled back", "time": 20.0, "reached": None},
        {"event": "restarting in place", "time": 20.0, "rank": "first", "reason": None},
        {"event": "finished", "time": 20.0},
        {"event": "gave up", "time": 20.0},
    ],
)
def test_events_with_missing_or_unknown_fields_are_tolerated(damaged: dict[str, Any]) -> None:
    """Alone, first, last, and in the middle of others."""
    for events in ([damaged], [damaged, *PREEMPTED], [*PREEMPTED, damaged], [*PREEMPTED[:3], damaged, *PREEMPTED[3:]]):
        attempts = read_attempts(events)
        assert time_spent(attempts).total >= 0
        assert time_spent(attempts).describe()


def test_an_attempt_that_seems_to_run_can_be_marked_as_killed() -> None:
    """The ledger does not know whether its processes still exist."""
    (attempt,) = read_attempts(PREEMPTED[:4])
    assert (attempt.ending, attempt.ended) == ("running", None)
    mark_killed(attempt)
    assert (attempt.ending, attempt.ended) == ("killed", 250)


def test_the_time_is_described_in_one_line() -> None:
    """Goodput first, then what took at least one percent, the longest first."""
    text = time_spent(read_attempts(PREEMPTED)).describe()
    assert text == (
        "goodput 83.7%: 3:05 of 3:41 on the nodes went into steps that count; "
        "start 20 s, data 5 s, evaluate 5 s, other 5 s; 3:09 in the queue"
    )
    assert time_spent([]).describe() == "no step yet, after 0 s on the nodes"
    assert Attempt(number=1, began=5).duration == 0
