"""A node whose rank is slower than the others is left at the next requeue, if the job was submitted so."""

import time

import pytest

from tests.helpers.background import stopped_most_of_the_time
from tests.helpers.cluster_case import Case, campaign

# A run that does not end during the test, whose ranks are compared over four seconds.
LONG = ("--epochs", "100000", "--log.eval_every_epochs", "100000", "--log.every_steps", "5")
COMPARED = ("--checks.slow_rank_seconds", "4", "--checks.slow_rank_ratio", "1.3")


def start_with_slow_rank(case: Case, *options: str) -> tuple[str, str]:
    """A run whose rank 1 is slow until it is told to stop.  Returns its first node, and that of its next start."""
    line = "    slow_seconds: float = 60.0  # for which a rank must have been reported as slow, for that\n"
    case.submit_patched(
        "jobs/node/restart_policy.py", line, "    slow_seconds: float = 3.0\n", *LONG, *COMPARED, *options
    )
    case.wait_until(lambda: case.steps_done() >= 3, "step 3")
    first = case.slurm.job(case.job)["BatchHost"]
    with stopped_most_of_the_time(case.ranks()[1]):
        case.wait_until(lambda: case.events("slow rank"), "the event")
        time.sleep(4)
        case.slurm.call("scancel", "--signal", "USR2", case.job)
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.wait_until(lambda: len(case.start_steps()) == 2, "the next start")
    return first, case.slurm.job(case.job)["BatchHost"]


@campaign
def test_a_node_whose_rank_stayed_slow_is_left_at_the_next_requeue(case: Case) -> None:
    """The event names it, as Slurm does; the requeue after USR2 excludes it."""
    first, second = start_with_slow_rank(case, "--exclude-slow")
    event = case.events("slow rank")[0]
    assert (event["rank"], event["node"], event["what"]) == (1, first, "forward and backward")
    assert f"rank 1 on {first} is slow" in (case.run.logs / "rank-0.log").read_text()
    assert case.slurm.job(case.job)["ExcNodeList"] == first
    assert second != first
    assert case.start_steps()[1] == case.stop_step()


@campaign
@pytest.mark.parametrize("options", [(), ("--exclude-slow", "--nodes", "2")])
def test_a_slow_node_is_used_again_without_the_option_or_without_another_node(
    options: tuple[str, ...], case: Case
) -> None:
    """The cluster has two nodes: a job of two would wait forever."""
    start_with_slow_rank(case, *options)
    assert case.slurm.job(case.job)["ExcNodeList"] == "(null)"
    assert ("too few other nodes" in case.job_output()) == bool(options)
