"""When a run that fails goes on, where, and when it is given up: read from its ledger, over all requeues."""

from dataclasses import replace
from typing import Any

import pytest

from jobs.node.restart_policy import Budget, Decision, Failure, decide, failing, first, wordless
from vit.run.folder import Event


def failure(step: int | None = 7, node: str = "n1", kind: Any = "signal", **more: Any) -> Failure:
    return Failure(kind=kind, node=node, rank=1, reason="ended with SIGKILL", step=step, **more)


def restarted(step: int | None, node: str = "n1", life: str = "5.0") -> Event:
    return {"event": "restarting in place", "step": step, "node": node, "life": life}


def requeued(step: int | None, node: str = "n1", life: str = "4.0") -> Event:
    return {"event": "requeueing", "step": step, "node": node, "life": life}


def saved(step: int) -> Event:
    return {"event": "checkpoint", "step": step}


def decided(events: list[Event], what: Failure, in_slurm: bool = True) -> Decision:
    return decide(events, what, Budget(), life="5.0", in_slurm=in_slurm)


def test_a_first_failure_is_restarted_in_place() -> None:
    """In Slurm and without it: a requeue costs minutes."""
    assert decided([], failure()).what == "restart"
    assert decided([saved(5)], failure(), in_slurm=False).what == "restart"


def test_what_only_the_user_can_mend_is_given_up_at_once() -> None:
    """A wrong setting fails in the same way however often it is tried."""
    assert decided([], failure(kind="user")).what == "give up"


def test_two_failures_at_the_same_step_end_the_run() -> None:
    """But not if a checkpoint was made between them, nor if both were killed before they got to a step."""
    assert decided([restarted(7)], failure(7)).what == "give up"
    assert "2 attempts failed at step 7" in decided([requeued(7)], failure(7)).why
    assert decided([restarted(7), saved(6)], failure(7)).what == "restart"
    assert decided([restarted(None)], failure(None)).what == "restart"


def test_the_same_exception_before_the_first_step_is_tried_on_other_nodes_and_ends_the_run() -> None:
    """Twice may be the node's fault: the job is requeued, off it; after two such requeues there is no hope."""
    raised = Failure(kind="exception", node="n1", rank=0, reason="OutOfMemoryError: process 17 has 1.5 GiB")
    again = replace(raised, reason="OutOfMemoryError: process 4711 has 1.25 GiB")
    once = {**restarted(None), "reason": again.reason}
    assert decided([], raised).what == "restart"
    assert decided([once], raised) == Decision("requeue", "1 of 3 times without a new checkpoint", ("n1",))
    assert decided([once], raised, in_slurm=False).what == "give up"
    assert decided([once], replace(raised, reason="OSError: no route")).what == "restart"
    assert decided([once], replace(raised, step=1)).what == "restart"
    moved = [{**requeued(None, life=life), "reason": again.reason} for life in ("5.1", "5.2")]
    assert decided([once, moved[0]], raised).what == "requeue"
    end = decided([once, *moved], raised)
    why = "4 attempts failed in the same way before their first step, on 3 starts of the job"
    assert end == Decision("give up", why)
    assert decided([once, *moved, saved(5)], raised).what == "restart"


def test_a_requeue_for_another_reason_says_nothing_of_an_exception_before_the_first_step() -> None:
    """Preempted between, or by a node that died: it was not yet tried elsewhere because of it."""
    raised = Failure(kind="exception", node="n1", rank=0, reason="ValueError: odd")
    once = {**restarted(None, life="4.0"), "reason": raised.reason}
    assert decided([once], raised).what == "requeue"
    assert decided([once, requeued(None, "n2")], raised).what == "requeue"


def test_of_a_single_failure_that_may_be_none_the_first_exception_is_a_requeue() -> None:
    """--max-same-step 1; a rank that was killed before its first step is still no reason."""
    budget = Budget(same_step=1)
    raised = Failure(kind="exception", node="n1", rank=0, reason="ValueError: odd")
    assert decide([], raised, budget, "5.0", in_slurm=True).what == "requeue"
    assert decide([], failure(None), budget, "5.0", in_slurm=True).what == "restart"
    assert decide([], failure(3), budget, "5.0", in_slurm=True).why.startswith("1 attempt failed at step 3")


def test_a_checkpoint_that_got_no_further_is_no_progress() -> None:
    """A run that saves the step at which it resumed has done nothing."""
    assert decided([saved(6), restarted(7), saved(6)], failure(7)).what == "give up"


def test_after_three_restarts_without_a_checkpoint_the_job_is_requeued() -> None:
    """Another node may be what it takes; without Slurm there is none.  What an earlier start did does not count."""
    events = [restarted(step) for step in (1, 2, 3)]
    assert decided(events, failure(4)).what == "requeue"
    assert decided(events, failure(4), in_slurm=False).what == "give up"
    assert decided([restarted(step, life="5.1") for step in (1, 2, 3)], failure(4)).what == "restart"


def test_a_node_that_fails_twice_is_excluded_when_the_job_is_requeued() -> None:
    """Named to Slurm; one that failed once is not."""
    events = [restarted(1, "n1"), restarted(2, "n2"), restarted(3, "n1")]
    assert decided(events, failure(4, "n3")).exclude == ("n1",)
    assert decided(events, failure(4, "n2")).exclude == ("n1", "n2")


def test_what_a_node_did_is_not_forgotten_with_a_checkpoint() -> None:
    """One that fails each hour makes progress between, and is left all the same, until a person asks again."""
    events = [restarted(1, "n1"), saved(9)]
    assert decided(events, failure(9, "n1", kind="node")).exclude == ("n1",)
    assert decided([*events, {"event": "submitted"}], failure(9, "n1", kind="node")).exclude == ()


def test_a_requeue_that_two_nodes_ask_for_is_one_failure() -> None:
    """Each that was left without the first node may have written it down."""
    events = [requeued(None, "n1"), requeued(None, "n1")]
    assert decided(events, failure(4, "n2", kind="node")).exclude == ()


def test_a_lost_node_needs_a_requeue() -> None:
    """No restart in place brings it back."""
    assert decided([], failure(None, "n2", kind="node")).what == "requeue"


def test_a_node_that_is_not_fit_is_left_at_once() -> None:
    """No restart in place makes it well; without Slurm there is no other.  The budget of requeues holds for it too."""
    sick = failure(None, "n2", kind="sick")
    assert decided([], sick).what == "requeue"
    assert decided([], sick).exclude == ("n2",)
    assert decided([], sick, in_slurm=False).what == "give up"
    assert decided([requeued(None, "n1", life=f"5.{i}") for i in range(3)], sick).what == "give up"


def test_the_fourth_requeue_without_a_checkpoint_is_not_made() -> None:
    """And a new checkpoint, or a person who submits again, makes the budget new."""
    events = [requeued(step, life=f"5.{step}") for step in (1, 2, 3)]
    assert decided([events[0]] * 4, failure(None, kind="node")).what == "requeue", "asked for by four nodes, once"
    assert decided(events, failure(None, kind="node")).what == "give up"
    assert decided([*events, saved(4)], failure(None, kind="node")).what == "requeue"
    assert decided([*events, {"event": "submitted"}], failure(None, kind="node")).what == "requeue"


def test_the_cause_is_told_from_its_echoes() -> None:
    """Ranks that lose a peer say so at once; that it was killed is known a moment later."""
    echo, killed = failure(kind="echo", time=1.0), failure(kind="signal", time=2.0)
    assert first([echo, killed]) is killed
    raised = failure(kind="exception", time=3.0)
    assert first([echo, killed, raised]) is raised
    later = failure(kind="signal", time=9.0)
    assert first([later, killed]) is killed


def test_of_nodes_that_stand_still_the_one_behind_is_to_blame() -> None:
    """Both find out at the same moment.  Where none is behind it is not known, and none is ever left for it."""
    first_node, second = (failure(9, node, "stalled", steps=4, time=5.0) for node in ("n1", "n2"))
    behind, stopped = (failure(9, "n2", "stalled", steps=steps, time=6.0) for steps in (3, -1))
    assert first([first_node, behind]) is behind
    assert first([first_node, stopped]) is stopped
    cause = first([first_node, second])
    assert cause.node == "n1 or n2"
    assert "rank 1 on n1 or n2 at step 9" in cause.told()
    assert failing([restarted(step, cause.node) for step in (3, 9)], Budget()) == []


def test_nodes_that_failed_before_are_left_at_any_requeue() -> None:
    """Also at one for the time limit, and whatever was saved between; but not what a person has seen."""
    events = [restarted(3, "n2"), saved(5), restarted(7, "n2"), restarted(8, "n1"), saved(9)]
    assert failing(events, Budget()) == ["n2"]
    assert failing(events, Budget(), "n1") == ["n1", "n2"]
    assert failing([*events, {"event": "submitted"}], Budget()) == []
    assert failing([restarted(3, "another node"), restarted(4, "another node")], Budget()) == []
    assert decided([], failure(None, "another node", kind="sick")).exclude == ()


def test_the_message_says_who_where_when_why_and_what_was_said_last() -> None:
    """All that a person needs before opening a log."""
    told = failure(tail="  last words", log="/runs/a/logs/rank-1.log").told()
    assert told == (
        "rank 1 on n1 at step 7: ended with SIGKILL\n  last words\nthe whole log is /runs/a/logs/rank-1.log"
    )


def test_of_what_the_user_can_mend_and_of_a_node_no_more_is_said_than_helps() -> None:
    """No rank, no step, no traceback."""
    wrong = failure(kind="user", tail="  last words", log="/runs/a/logs/rank-1.log")
    assert wrong.told() == "ended with SIGKILL\nthe whole log is /runs/a/logs/rank-1.log"
    node = Failure(kind="sick", node="n2", rank=-1, reason="n2 is not fit for this run: it is on fire")
    assert node.told() == "n2 is not fit for this run: it is on fire"


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
    """They leave no word; a preempted one was told."""
    assert wordless([{"event": name} for name in events]) == count
    assert wordless([{"event": "supervising"}, saved(3), *({"event": name} for name in events)]) == count
