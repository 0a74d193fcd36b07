"""A rank that makes no progress is found by the watchdog, and the ranks are restarted in place."""

from tests.helpers.cluster_case import Case


def test_a_stalled_rank_is_found_and_restarted_in_place(case: Case, reference_weights: bytes) -> None:
    """SIGSTOP of one rank: all ranks write their stack traces and are killed; the run resumes from a checkpoint.

    The run is slowed down: the watchdog resumes the stopped rank for a second, in which it could finish otherwise.
    """
    case.start("--gpus", "2", "--checkpoint.every_minutes", "0.005", "--stall-seconds", "4")
    with case.slowed():
        case.wait_until(lambda: case.events("checkpoint"), "a checkpoint")
        case.ranks()[1].suspend()
        case.wait_until(lambda: case.events("restarting in place"), "the restart")
    case.finish()
    (restart,) = case.events("restarting in place")
    assert restart["rank"] == 1
    assert "was stopped by SIGSTOP for" in restart["reason"]
    for rank in (0, 1):  # in the step, or where ranks agree on whether to stop
        assert "train.py" in (case.run.logs / f"rank-{rank}.stacks").read_text()
    assert case.start_steps()[1] > 0
    assert case.weights() == reference_weights
