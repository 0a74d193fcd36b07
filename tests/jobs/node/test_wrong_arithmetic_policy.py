"""Where a run continues after its ranks differed, and when it gives up."""

from jobs.node.restart_policy import Decision, RetryLimits, decide_after_wrong_arithmetic, nodes_to_exclude
from tests.jobs.node.test_restart_policy import failure, requeued, restarted, saved
from vit.run.folder import Event


def found(step: int, *nodes: str, settled: bool = True) -> Event:
    return {"event": "wrong arithmetic", "step": step, "settled": settled, "suspects": [{"node": n} for n in nodes]}


def settled(step: int, *nodes: str) -> Event:
    return {"event": "wrong arithmetic settled", "step": step, "suspects": [{"node": n} for n in nodes]}


def test_a_node_that_computed_wrong_values_is_left_at_once() -> None:
    """Whatever the step; also at later requeues for other reasons."""
    events = [saved(5), restarted(7), found(7, "n2")]
    wrong = failure(kind="unhealthy", node="n2", suspects=("n2",))
    decision = decide_after_wrong_arithmetic(events, wrong, RetryLimits(), other_nodes=True)
    assert (decision.what, decision.exclude) == ("requeue", ("n2",))
    assert nodes_to_exclude(events, RetryLimits()) == ["n2"]
    assert nodes_to_exclude([*events, {"event": "submitted"}], RetryLimits()) == []


def test_of_two_nodes_that_differ_one_is_left_until_it_is_known_which_was_wrong() -> None:
    """The other one, if it was that; none if it can no longer be known."""
    events = [found(7, "n1", "n2", settled=False)]
    assert nodes_to_exclude(events, RetryLimits()) == ["n2"]
    assert nodes_to_exclude([*events, settled(7, "n1")], RetryLimits()) == ["n1"]
    assert nodes_to_exclude([*events, settled(7, "n2")], RetryLimits()) == ["n2"]
    assert nodes_to_exclude([*events, settled(7)], RetryLimits()) == []


def test_wrong_values_on_ever_new_nodes_end_the_run() -> None:
    """Then it is not the nodes; a new checkpoint resets the count."""
    wrong = failure(kind="unhealthy", node="n4", suspects=("n4",))
    events = [requeued(7, node, start_id) for node, start_id in (("n1", "5.0"), ("n2", "5.1"), ("n3", "5.2"))]
    decision = decide_after_wrong_arithmetic(events, wrong, RetryLimits(), other_nodes=True)
    why = "wrong values were computed on 4 starts of the job without a new checkpoint in between"
    assert decision == Decision("give up", why)
    assert decide_after_wrong_arithmetic([*events, saved(9)], wrong, RetryLimits(), True).what == "requeue"


def test_without_other_nodes_a_run_restarts_in_place_a_few_times() -> None:
    """Cosmic rays flip bits too; but a machine that is wrong again and again is defective."""
    wrong = failure(kind="unhealthy", node="n1", suspects=("n1",))
    events: list[Event] = []
    for step in (7, 8, 9):
        events += [saved(step - 1), found(step, "n1")]
        assert decide_after_wrong_arithmetic(events, wrong, RetryLimits(), other_nodes=False).what == "restart"
    events += [saved(9), found(10, "n1")]
    decision = decide_after_wrong_arithmetic(events, wrong, RetryLimits(), other_nodes=False)
    assert decision.what == "give up" and "4 times on n1 since the run was submitted" in decision.why
