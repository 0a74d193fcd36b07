"""A supervisor or a node that dies is replaced by a requeue; an unhealthy node is excluded."""

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.waiting import wait_for


@pytest.mark.parametrize("nodes", ["1", pytest.param("2", marks=campaign)])
def test_a_supervisor_that_dies_is_replaced_by_a_requeue(nodes: str, case: Case, reference_weights: bytes) -> None:
    """SIGKILL of the last node's: its ranks save and exit, the other node exits, the job is requeued."""
    case.start("--gpus", "2", "--nodes", nodes)
    with case.slowed():
        case.supervisors()[-1].kill()
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.finish()
    assert case.slurm.job(case.job)["Restarts"] == "1"
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights


@campaign
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_node_that_dies_is_replaced_by_a_requeue(nodes: str, case: Case, reference_weights: bytes) -> None:
    """All processes of the job's last node are killed, slurmd first; the run resumes from its newest checkpoint."""
    job = case.start("--gpus", "1", "--nodes", nodes, "--checkpoint.every_minutes", "0.005")
    node = case.slurm.job(job)["BatchHost"] if nodes == "1" else "n2"
    with case.slowed():
        case.wait_until(lambda: case.events("checkpoint"), "a checkpoint")
        case.slurm.kill_node(node)
        wait_for(lambda: case.slurm.state(case.job) != "RUNNING", "the requeue", 120)
    case.slurm.restart(f"slurmd-{node}")
    case.finish()
    assert int(case.slurm.job(case.job)["Restarts"]) >= 1
    assert case.resumed_from_newest_checkpoint()
    assert case.weights() == reference_weights


@campaign
def test_a_node_that_fails_twice_is_replaced_by_another(case: Case, reference_weights: bytes) -> None:
    """One restart in place is allowed here: the second failure requeues the job, which then runs on the other node."""
    case.start("--gpus", "2", "--max-restarts", "1", "--max-same-step", "9")
    first = case.slurm.job(case.job)["BatchHost"]
    with case.slowed():
        case.ranks()[0].kill()
        case.wait_until(lambda: len(case.start_steps()) == 2, "the restart in place")
        case.ranks()[1].kill()
        case.wait_until(lambda: case.events("requeueing"), "the requeue")
    case.finish()
    assert case.events("requeueing")[0]["exclude"] == [first]
    assert case.slurm.job(case.job)["ExcNodeList"] == first
    assert case.slurm.job(case.job)["BatchHost"] != first
    assert case.weights() == reference_weights


@campaign
def test_a_node_that_failed_twice_is_excluded_at_the_time_limit_too(case: Case, reference_weights: bytes) -> None:
    """Both failures were restarted in place; the requeue at the time limit excludes the node."""
    case.start("--gpus", "2", "--max-same-step", "9")
    first = case.slurm.job(case.job)["BatchHost"]
    with case.slowed():
        for starts in (2, 3):
            case.ranks()[0].kill()
            case.wait_until(lambda: len(case.start_steps()) == starts, "the restart in place")  # noqa: B023
        case.slurm.call("scancel", "--signal", "USR2", case.job)
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.finish()
    assert not case.events("requeueing")
    assert case.start_steps()[-1] == case.stop_step()
    assert case.slurm.job(case.job)["ExcNodeList"] == first
    assert case.slurm.job(case.job)["BatchHost"] != first
    assert case.weights() == reference_weights


@campaign
def test_a_node_that_no_longer_sees_the_run_folder_does_not_end_the_run(case: Case, reference_weights: bytes) -> None:
    """Its mount is lost when the job restarts: it is reported, and the job waits for another node, or for the mount."""
    case.start("--gpus", "1", "--nodes", "2")
    with case.slowed():
        case.slurm.restart("slurmd-n2", hide=case.run.path.parent)
        case.slurm.call("scontrol", "requeue", case.job)
        case.wait_until(lambda: case.events("stopped"), "the save")
    case.wait_until(lambda: case.events("requeueing"), "the requeue")
    case.slurm.restart("slurmd-n2")
    case.finish()
    event = case.events("requeueing")[0]
    assert (event["kind"], event["node"], event["exclude"]) == ("unhealthy", "n2", ["n2"])
    assert f"n2 does not see {case.run.source}" in case.job_output()
    assert "the job may run on n2 again: too few other nodes are available" in case.job_output()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights


# On the first node that runs the health check, matrix products are wrong in that check.
WRONG_PRODUCTS = """import os, sys
from pathlib import Path
if "vit.node_check" in " ".join(sys.orig_argv):
    node, unhealthy = os.environ["SLURMD_NODENAME"], Path(__file__).with_name("unhealthy")
    if not unhealthy.exists():
        unhealthy.write_text(node)
    if unhealthy.read_text() == node:
        import torch
        correct = torch.Tensor.__matmul__
        torch.Tensor.__matmul__ = lambda a, b: correct(a, b) + 1
"""


@campaign
def test_a_node_that_computes_wrong_products_is_excluded_before_training_starts(
    case: Case, reference_weights: bytes
) -> None:
    """No rank starts on it; the ledger and the job's output name it, and the requeue excludes it."""
    done = case.submit("--gpus", "2")
    assert done.returncode == 0, done.stderr
    (case.run.source / "sitecustomize.py").write_text(WRONG_PRODUCTS)
    case.wait_until(lambda: case.events("requeueing"), "the requeue")
    assert not case.start_steps()
    case.finish()
    (event,) = case.events("requeueing")
    node = (case.run.source / "unhealthy").read_text()
    assert (event["kind"], event["node"], event["exclude"]) == ("unhealthy", node, [node])
    assert f"{node} failed the node health check: cpu returned a wrong matrix product" in case.job_output()
    assert case.slurm.job(case.job)["BatchHost"] != node
    assert case.start_steps() == [0]
    assert case.weights() == reference_weights
