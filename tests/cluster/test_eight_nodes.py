"""A run on eight nodes of one rank each: bits, a lost node, fewer nodes, preemption."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case, campaign, settings
from tests.helpers.slurm_cluster import Cluster, missing
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder

NODES = 8
MICRO_BATCHES = ("--micro_batch", "8")  # eight per step, one for each rank
WAIT_SECONDS = 900  # eight nodes of this machine import torch at the same time


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A cluster of eight nodes."""
    if why := missing():
        pytest.skip(why)
    cluster = Cluster(nodes=NODES)
    yield cluster
    cluster.stop()


@pytest.fixture
def wide(nodes: Cluster, betons: Path, tmp_path: Path) -> Iterator[Case]:
    """A new run on idle nodes; jobs that a failed test left are canceled."""
    yield Case(nodes, RunFolder(tmp_path / "runs" / "run"), (*settings(betons), *MICRO_BATCHES))
    nodes.call("scancel", "--user", "root", check=False)
    wait_for(nodes.nodes_idle, "all nodes to be idle", 240)


@pytest.fixture(scope="module")
def weights(nodes: Cluster, betons: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run without faults, with two ranks on one node."""
    run = RunFolder(tmp_path_factory.mktemp("reference") / "runs" / "run")
    case = Case(nodes, run, (*settings(betons), *MICRO_BATCHES))
    done = case.submit("--gpus", "2")
    assert done.returncode == 0, done.stderr
    case.finish()
    return case.weights()


def start(case: Case, *options: str, count: int = NODES) -> str:
    """Submits the run on so many nodes, and waits for its third step."""
    done = case.submit("--gpus", "1", "--nodes", str(count), *options)
    assert done.returncode == 0, done.stderr
    case.wait_until(lambda: case.steps_done() >= 3, "step 3", WAIT_SECONDS)
    assert case.events("started")[-1]["ranks"] == count
    return case.job


@campaign
@pytest.mark.timeout(1800)
def test_eight_nodes_and_then_four_after_a_preemption_give_the_same_bits(wide: Case, weights: bytes) -> None:
    """All eight are preempted and save the same step; the run is canceled in the queue, and submitted on four."""
    job = start(wide)
    with wide.slowed():
        wide.preempt()
        wide.wait_until(lambda: wide.events("stopped"), "the save")
    stopped = wide.stop_step()
    wide.wait_until(lambda: len(wide.start_steps()) == 2, "the second start", WAIT_SECONDS)
    with wide.slowed():
        wide.slurm.call("scancel", job)
        wide.wait_until(lambda: len(wide.events("stopped")) == 2, "the save")
    wait_for(wide.slurm.nodes_idle, "all nodes to be idle", 240)
    done = wide.submit("--gpus", "1", "--nodes", "4")
    assert done.returncode == 0, done.stderr
    wide.finish(WAIT_SECONDS)
    assert [e["ranks"] for e in wide.events("started")] == [8, 8, 4]
    assert wide.start_steps() == [0, stopped, wide.stop_step()]
    assert wide.weights() == weights


@campaign
@pytest.mark.timeout(1800)
def test_one_of_eight_nodes_is_lost_and_replaced(wide: Case, weights: bytes) -> None:
    """All its processes are killed, slurmd first; the job is requeued and resumes when the node is back."""
    job = start(wide, "--checkpoint.every_minutes", "0.005")
    with wide.slowed():
        wide.wait_until(lambda: wide.events("checkpoint"), "a checkpoint")
        wide.slurm.kill_node("n5")
        wait_for(lambda: wide.slurm.state(job) != "RUNNING", "the requeue", 240)
    wide.slurm.restart("slurmd-n5")
    wide.finish(WAIT_SECONDS)
    assert int(wide.slurm.job(job)["Restarts"]) >= 1
    assert wide.resumed_from_newest_checkpoint()
    assert wide.weights() == weights


@campaign
@pytest.mark.timeout(1800)
def test_a_run_of_four_or_eight_nodes_goes_on_with_four_when_one_is_lost(wide: Case, weights: bytes) -> None:
    """Seven nodes are left: the job of eight cannot start again, and that of four takes the run over."""
    done = wide.submit("--gpus", "1", "--nodes", "4-8", "--checkpoint.every_minutes", "0.005")
    assert done.returncode == 0, done.stderr
    wide.wait_until(lambda: wide.events("started") and wide.events("started")[-1]["ranks"] == 8, "eight ranks", 900)
    with wide.slowed():
        wide.wait_until(lambda: wide.events("checkpoint"), "a checkpoint")
        wide.slurm.kill_node("n5")
        wide.wait_until(lambda: wide.events("started")[-1]["ranks"] == 4, "four ranks", WAIT_SECONDS)
    wide.wait_until(wide.run.finished, "the end of the run", WAIT_SECONDS)
    wide.slurm.restart("slurmd-n5")
    assert wide.resumed_from_newest_checkpoint()
    assert wide.weights() == weights
