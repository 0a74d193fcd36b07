"""When and where a failed run continues, and when it is given up: decided from its ledger, over all requeues."""

from dataclasses import replace
from typing import Any

import pytest

from jobs.node.restart_policy import (
    Decision,
    Failure,
    RetryLimits,
    count_silent_starts,
    decide,
    nodes_to_exclude,
    root_cause,
)
from vit.run.folder import Event


def failure(step: int | None = 7, node: str = "n1", kind: Any = "signal", **more: Any) -> Failure:
    return Failure(kind=kind, node=node, rank=1, reason="ended with SIGKILL", step=step, **more)


def restarted(step: int | None, node: str = "n1", start_id: str = "5.0") -> Event:
    return {"event": "restarting in place", "step": step, "node": node, "life": start_id}


def requeued(step: int | None, node: str = "n1", start_id: str = "4.0") -> Event:
    return {"event": "requeueing", "step": step, "node": node, "life": start_id}


def saved(step: int) -> Event:
    return {"event": "checkpoint", "step": step}


def decided(events: list[Event], new: Failure, in_slurm: bool = True) -> Decision:
    return decide(events, new, RetryLimits(), start_id="5.0", in_slurm=in_slurm)


def test_the_first_failure_is_restarted_in_place() -> None:
    """With and without Slurm: a requeue costs minutes."""
    assert decided([], failure()).what == "restart"
    assert decided([saved(5)], failure(), in_slurm=False).what == "restart"


def test_an_error_that_only_the_user_can_fix_ends_the_run_at_once() -> None:
    """A wrong setting fails in the same way however often it is tried."""
    assert decided([], failure(kind="user")).what == "give up"


def test_two_failures_at_the_same_step_end_the_run() -> None:
    """But not with a checkpoint between them, nor if both were killed before their first step."""
    assert decided([restarted(7)], failure(7)).what == "give up"
    assert "2 attempts failed at step 7" in decided([requeued(7)], failure(7)).why
    assert decided([restarted(7), saved(6)], failure(7)).what == "restart"
    assert decided([restarted(None)], failure(None)).what == "restart"


def test_a_repeated_exception_before_the_first_step_is_tried_on_other_nodes_before_the_run_ends() -> None:
    """The node may be the cause: after two failures the job is requeued without it; two such requeues are allowed."""
    raised = Failure(kind="exception", node="n1", rank=0, reason="OutOfMemoryError: process 17 has 1.5 GiB")
    again = replace(raised, reason="OutOfMemoryError: process 4711 has 1.25 GiB")
    once = {**restarted(None), "reason": again.reason}
    assert decided([], raised).what == "restart"
    assert decided([once], raised) == Decision("requeue", "requeue 1 of 3 without a new checkpoint", ("n1",))
    assert decided([once], raised, in_slurm=False).what == "give up"
    assert decided([once], replace(raised, reason="OSError: no route")).what == "restart"
    assert decided([once], replace(raised, step=1)).what == "restart"
    moved = [{**requeued(None, start_id=start_id), "reason": again.reason} for start_id in ("5.1", "5.2")]
    assert decided([once, moved[0]], raised).what == "requeue"
    end = decided([once, *moved], raised)
    why = "4 attempts failed in the same way before their first step, on 3 starts of the job"
    assert end == Decision("give up", why)
    assert decided([once, *moved, saved(5)], raised).what == "restart"


def test_before_a_restart_because_of_an_unreadable_file_there_is_a_growing_pause() -> None:
    """A file server may respond again after a while.  Without Slurm there is no other node to try."""
    unreadable = Failure(kind="exception", node="n1", rank=0, reason="OSError: [Errno 5] Input/output error: 'a'")
    before = [{**restarted(None), "reason": unreadable.reason} for _ in range(3)]
    decisions = [decided(before[:count], unreadable, in_slurm=False) for count in range(4)]
    assert [(decision.what, decision.pause) for decision in decisions] == [
        ("restart", 5),
        ("restart", 15),
        ("restart", 45),
        ("give up", 0),
    ]
    assert decisions[0].why == "restart 1 of 3 without a new checkpoint, in 5 s"
    assert [decided(before[:count], unreadable).what for count in range(2)] == ["restart", "requeue"]
    assert decided([], replace(unreadable, step=3)).pause == 0


def test_only_requeues_because_of_the_same_exception_count_as_tries_on_other_nodes() -> None:
    """A preemption, or a node that died, in between does not."""
    raised = Failure(kind="exception", node="n1", rank=0, reason="ValueError: odd")
    once = {**restarted(None, start_id="4.0"), "reason": raised.reason}
    assert decided([once], raised).what == "requeue"
    assert decided([once, requeued(None, "n2")], raised).what == "requeue"


def test_if_no_failure_at_the_same_step_is_allowed_the_first_exception_requeues_the_job() -> None:
    """--max-same-step 1; a rank that was killed before its first step is still restarted in place."""
    limits = RetryLimits(same_step=1)
    raised = Failure(kind="exception", node="n1", rank=0, reason="ValueError: odd")
    assert decide([], raised, limits, "5.0", in_slurm=True).what == "requeue"
    assert decide([], failure(None), limits, "5.0", in_slurm=True).what == "restart"
    assert decide([], failure(3), limits, "5.0", in_slurm=True).why.startswith("1 attempt failed at step 3")


def test_a_checkpoint_at_a_step_that_was_saved_before_is_no_progress() -> None:
    """A run that saves the step at which it resumed has done nothing."""
    assert decided([saved(6), restarted(7), saved(6)], failure(7)).what == "give up"


def test_after_three_restarts_without_a_checkpoint_the_job_is_requeued() -> None:
    """Another node may help; without Slurm there is none.  Restarts in an earlier start of the job do not count."""
    events = [restarted(step) for step in (1, 2, 3)]
    assert decided(events, failure(4)).what == "requeue"
    assert decided(events, failure(4), in_slurm=False).what == "give up"
    assert decided([restarted(step, start_id="5.1") for step in (1, 2, 3)], failure(4)).what == "restart"


def test_a_node_that_failed_twice_is_excluded_when_the_job_is_requeued() -> None:
    """A node that failed once is not."""
    events = [restarted(1, "n1"), restarted(2, "n2"), restarted(3, "n1")]
    assert decided(events, failure(4, "n3")).exclude == ("n1",)
    assert decided(events, failure(4, "n2")).exclude == ("n1", "n2")


def test_failures_of_a_node_still_count_after_a_checkpoint() -> None:
    """A node that fails each hour is excluded although the run makes progress, until it is submitted again."""
    events = [restarted(1, "n1"), saved(9)]
    assert decided(events, failure(9, "n1", kind="node")).exclude == ("n1",)
    assert decided([*events, {"event": "submitted"}], failure(9, "n1", kind="node")).exclude == ()


def test_a_requeue_recorded_by_two_nodes_is_one_failure() -> None:
    """Each node that lost the first node may have recorded it."""
    events = [requeued(None, "n1"), requeued(None, "n1")]
    assert decided(events, failure(4, "n2", kind="node")).exclude == ()


def test_a_lost_node_requeues_the_job() -> None:
    """A restart in place would not bring it back."""
    assert decided([], failure(None, "n2", kind="node")).what == "requeue"


def test_an_unhealthy_node_is_excluded_at_once() -> None:
    """A restart in place would not help; without Slurm there is no other node.  The limit of requeues applies."""
    unhealthy = failure(None, "n2", kind="unhealthy")
    assert decided([], unhealthy).what == "requeue"
    assert decided([], unhealthy).exclude == ("n2",)
    assert decided([], unhealthy, in_slurm=False).what == "give up"
    assert decided([requeued(None, "n1", start_id=f"5.{i}") for i in range(3)], unhealthy).what == "give up"


def test_after_three_requeues_without_a_checkpoint_the_run_ends() -> None:
    """A new checkpoint, or submitting again, resets the count."""
    events = [requeued(step, start_id=f"5.{step}") for step in (1, 2, 3)]
    assert decided([events[0]] * 4, failure(None, kind="node")).what == "requeue", "one requeue, recorded by four nodes"
    assert decided(events, failure(None, kind="node")).what == "give up"
    assert decided([*events, saved(4)], failure(None, kind="node")).what == "requeue"
    assert decided([*events, {"event": "submitted"}], failure(None, kind="node")).what == "requeue"


def test_the_root_cause_is_found_among_secondary_failures() -> None:
    """Ranks that lose a peer report it at once; that the peer was killed is known only a moment later."""
    secondary, killed = failure(kind="secondary", time=1.0), failure(kind="signal", time=2.0)
    assert root_cause([secondary, killed]) is killed
    raised = failure(kind="exception", time=3.0)
    assert root_cause([secondary, killed, raised]) is raised
    later = failure(kind="signal", time=9.0)
    assert root_cause([later, killed]) is killed


def test_of_several_stalled_nodes_the_one_that_is_behind_is_the_root_cause() -> None:
    """All nodes find the stall at the same moment.  If none is behind, the node is unknown and never excluded."""
    first, second = (failure(9, node, "stalled", steps=4, time=5.0) for node in ("n1", "n2"))
    behind, stopped = (failure(9, "n2", "stalled", steps=steps, time=6.0) for steps in (3, -1))
    assert root_cause([first, behind]) is behind
    assert root_cause([first, stopped]) is stopped
    cause = root_cause([first, second])
    assert cause.node == "n1 or n2"
    assert "rank 1 on n1 or n2 at step 9" in cause.message()
    assert nodes_to_exclude([restarted(step, cause.node) for step in (3, 9)], RetryLimits()) == []


def test_nodes_that_failed_twice_are_excluded_at_any_requeue() -> None:
    """Also at the time limit, and despite checkpoints; but failures before the run was submitted do not count."""
    events = [restarted(3, "n2"), saved(5), restarted(7, "n2"), restarted(8, "n1"), saved(9)]
    assert nodes_to_exclude(events, RetryLimits()) == ["n2"]
    assert nodes_to_exclude(events, RetryLimits(), "n1") == ["n1", "n2"]
    assert nodes_to_exclude([*events, {"event": "submitted"}], RetryLimits()) == []
    unknown = [restarted(3, "another node"), restarted(4, "another node")]
    assert nodes_to_exclude(unknown, RetryLimits()) == []
    assert decided([], failure(None, "another node", kind="unhealthy")).exclude == ()


def test_the_message_names_rank_node_step_reason_last_lines_and_log() -> None:
    """All that a person needs before opening the log."""
    message = failure(tail="  last lines", log="/runs/a/logs/rank-1.log").message()
    assert message == ("rank 1 on n1 at step 7: ended with SIGKILL\n  last lines\nfull log: /runs/a/logs/rank-1.log")


def test_the_message_of_a_user_error_or_an_unhealthy_node_is_short() -> None:
    """No rank, no step, no traceback."""
    wrong = failure(kind="user", tail="  last lines", log="/runs/a/logs/rank-1.log")
    assert wrong.message() == "ended with SIGKILL\nfull log: /runs/a/logs/rank-1.log"
    node = Failure(kind="unhealthy", node="n2", rank=-1, reason="n2 failed the node health check: no GPU")
    assert node.message() == "n2 failed the node health check: no GPU"


@pytest.mark.parametrize(
    ("events", "count"),
    [
        (["supervising"], 1),
        (["supervising"] * 3, 3),
        (["supervising", "told to stop", "supervising"], 1),
        (["supervising", "supervising", "requeueing"], 0),
        ([], 0),
    ],
)
def test_starts_that_were_killed_from_outside_are_counted(events: list[str], count: int) -> None:
    """They record no end; a preempted one records that it was asked to stop."""
    assert count_silent_starts([{"event": name} for name in events]) == count
    assert count_silent_starts([{"event": "supervising"}, saved(3), *({"event": name} for name in events)]) == count


def slow(time: float, rank: int = 1, node: str = "n2", event: str = "slow rank") -> Event:
    return {"event": event, "time": time, "rank": rank, "node": node, "what": "data", "ratio": 1.5}


def stopped(time: float) -> Event:
    return {"event": "stopped", "time": time}


@pytest.mark.parametrize(
    ("events", "excluded"),
    [
        ([slow(100), stopped(200)], ["n2"]),
        ([slow(100), stopped(130)], []),  # for half a minute
        ([slow(100), slow(250, event="rank recovered"), stopped(300)], []),
        ([slow(100), slow(110), stopped(165)], ["n2"]),  # slow at something else meanwhile
        ([slow(100), slow(100, rank=0, node="n1"), stopped(200)], ["n1", "n2"]),
        ([slow(100), stopped(200), slow(300, node="n1"), stopped(400)], []),  # this rank, on each node
        ([slow(100), slow(110, rank=0), stopped(200), slow(300, node="n1"), stopped(400)], ["n2"]),
        ([slow(100), stopped(200), {"event": "submitted"}], []),
        ([slow(100)], ["n2"]),  # still slow
    ],
)
def test_with_exclude_slow_a_requeue_leaves_nodes_whose_rank_stayed_slow(
    events: list[Event], excluded: list[str]
) -> None:
    """For a minute, up to the end of its attempt.  A rank that is slow on each node has more to do; no node is slow."""
    assert nodes_to_exclude(events, RetryLimits(exclude_slow=True)) == excluded
    assert nodes_to_exclude(events, RetryLimits()) == []


def test_nodes_that_failed_are_excluded_before_slow_ones() -> None:
    """If too few other nodes are left, the last ones of the list may be used again."""
    events = [slow(100, node="n1"), stopped(200), restarted(1, "n2"), restarted(2, "n2")]
    limits = RetryLimits(exclude_slow=True)
    assert nodes_to_exclude(events, limits) == ["n2", "n1"]
    unhealthy = failure(None, "n3", kind="unhealthy")
    assert decide(events, unhealthy, limits, "5.0", in_slurm=True).exclude == ("n3", "n2", "n1")
