"""A rank that fails is restarted in place, with all others; a failure that repeats ends the run and is reported."""

import re
from dataclasses import replace
from pathlib import Path

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder


def test_a_rank_that_dies_on_one_of_two_nodes_is_restarted_in_place(case: Case, reference_weights: bytes) -> None:
    """SIGKILL: all ranks of both nodes restart from the newest checkpoint, without a requeue."""
    case.start("--gpus", "2", "--nodes", "2", "--checkpoint.every_minutes", "0.005")
    with case.slowed():
        case.wait_until(lambda: case.events("checkpoint"), "a checkpoint")
        case.ranks()[3].kill()
        case.wait_until(lambda: case.events("restarting in place"), "the restart")
    case.finish()
    (restart,) = case.events("restarting in place")
    assert (restart["rank"], restart["reason"]) == (3, "ended with SIGKILL")
    assert restart["node"] in {"n1", "n2"}
    assert case.resumed_from_newest_checkpoint()
    assert len(case.start_steps()) == 2
    assert case.slurm.job(case.job)["Restarts"] == "0"
    assert case.weights() == reference_weights
    log, step = case.job_output(), case.start_steps()[1]
    assert re.search(
        rf"^resuming at step {step} \(epoch {step / 8:.1f}\), attempt 2; (no|\d+) steps? repeated$", log, re.M
    )
    assert re.search(r"^finished in .*, in 2 attempts \(the last one took .*\)\ngoodput [\d.]+%: ", log, re.M)


@campaign
def test_a_rank_that_raises_once_is_restarted_in_place(case: Case, reference_weights: bytes) -> None:
    """The other rank only loses its connection; the ledger names the rank that raised."""
    case.submit_raising("if step == 9 and self.world.rank == 1 and not once.exists():")
    case.finish()
    (restart,) = case.events("restarting in place")
    assert (restart["rank"], restart["reason"], restart["step"]) == (1, "OSError: the disk is on fire", 9)
    assert case.weights() == reference_weights


@campaign
def test_a_fork_server_that_dies_is_replaced(case: Case, reference_weights: bytes) -> None:
    """SIGKILL: its ranks save and exit, and others are started in place by a new server."""
    case.start("--gpus", "2")
    with case.slowed():
        case.ranks()[0].parents()[0].kill()
        case.wait_until(lambda: case.events("restarting in place"), "the restart")
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.slurm.job(case.job)["Restarts"] == "0"
    assert case.weights() == reference_weights


@campaign
def test_a_run_that_fails_at_the_same_step_twice_ends_and_says_why(case: Case) -> None:
    """The message has the rank, its node, its exception and the last lines of its log."""
    case.submit_raising("if step == 5 and self.world.rank == 1:")  # before the first checkpoint
    wait_for(lambda: case.slurm.state(case.job) == "FAILED", "the end of the job", 120)
    (end,) = case.events("gave up")
    for words in ("rank 1 on n", "at step 5: OSError: the disk is on fire", "raise OSError", "logs/rank-1.log"):
        assert words in end["why"]
    assert len(case.start_steps()) == 2
    assert "the disk is on fire" in case.job_output()


@campaign
def test_a_run_that_fails_before_its_first_step_is_tried_on_another_node_and_ends(case: Case) -> None:
    """Twice on the first node, because the failure may be transient, then on the other: the node may be the cause."""
    wrong = '        if world.rank == 1:\n            raise OSError("the disk is on fire")\n'
    case.submit_patched("vit/training/trainer.py", "        self.state = TrainState.fresh(cfg, world.device)\n", wrong)
    case.wait_until(lambda: case.events("gave up"), "the end of the run", 200)
    (restart,), requeues, (end,) = map(case.events, ("restarting in place", "requeueing", "gave up"))
    first = restart["node"]
    (other,) = {"n1", "n2"} - {first}
    assert [(e["node"], e["exclude"]) for e in requeues] == [(first, [first]), (other, [first])]
    assert "rank 1 on n" in end["why"]
    assert "OSError: the disk is on fire" in end["why"]
    assert "4 attempts failed in the same way before their first step, on 3 starts of the job" in end["why"]
    assert case.start_steps() == []


@campaign
def test_a_step_with_a_loss_that_is_not_finite_is_skipped_in_place(case: Case, tmp_path: Path) -> None:
    """No attempt fails, and a rank that dies later does not change which step is skipped."""
    fault = (
        "vit/training/step.py",
        "        losses = []\n",
        "        if step == 20:\n            batch.micro_batches[0][0].fill_(math.nan)\n",
    )
    case.submit_patched(*fault)
    case.wait_until(lambda: case.steps_done() > 5, "some steps")
    with case.slowed():
        case.wait_until(lambda: case.events("rolled back"), "the rollback")
        case.ranks()[1].kill()
        case.wait_until(lambda: case.events("restarting in place"), "the restart")
    case.finish()
    alone = replace(case, run=RunFolder(tmp_path / "runs" / "alone"))
    alone.submit_patched(*fault)
    alone.finish()
    assert [e["step"] for e in case.events("skipped")] == [e["step"] for e in alone.events("skipped")] == [21]
    assert len(case.start_steps()) == 2
    assert alone.start_steps() == [0]
    assert case.weights() == alone.weights()
