"""What doctor.py says about a partition is what a run there goes through."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for

ENDED = {"PREEMPTED", "CANCELLED", "COMPLETED", "FAILED"}


@contextmanager
def canceling_partition(slurm: Cluster, grace_seconds: int, user_signal: bool) -> Iterator[str]:
    """A partition with PreemptMode=CANCEL, on a cluster that sends USR2 or TERM first."""
    if not user_signal:
        slurm.set_user_signal(False)  # restarts the controller, which then knows only the partitions of its file
    settings = ("Nodes=n[1-2]", "PriorityTier=1", "PreemptMode=CANCEL", f"GraceTime={grace_seconds}")
    slurm.call("scontrol", "create", "PartitionName=canceled", *settings)
    yield "canceled"
    slurm.call("scancel", "--partition", "canceled", check=False)
    wait_for(slurm.nodes_idle, "all nodes to be idle", 120)
    slurm.call("scontrol", "delete", "PartitionName=canceled")
    if not user_signal:
        slurm.set_user_signal(True)


@pytest.mark.parametrize(
    ("grace", "user_signal"),
    [(20, True), pytest.param(20, False, marks=campaign), pytest.param(0, True, marks=campaign)],
)
def test_a_run_that_is_preempted_by_cancel_requeues_itself(
    grace: int, user_signal: bool, case: Case, reference_weights: bytes
) -> None:
    """Slurm would cancel it: the run saves and asks for a requeue, in its grace time or because it got USR2."""
    with canceling_partition(case.slurm, grace, user_signal) as partition:
        job = case.start("--gpus", "1", "--nodes", "2", "--partition", partition)
        case.preempt_and_finish()
    assert case.job == job
    assert case.weights() == reference_weights


@campaign
def test_a_run_that_is_preempted_by_cancel_without_notice_ends_and_is_resumed_by_the_same_command(
    case: Case, reference_weights: bytes
) -> None:
    """It saves within KillWait; nothing is lost, but nobody submits it again."""
    with canceling_partition(case.slurm, 0, user_signal=False) as partition:
        job = case.start("--gpus", "1", "--nodes", "2", "--partition", partition)
        with case.slowed():
            case.preempt()
            wait_for(lambda: case.events("stopped"), "the save", 60)
        wait_for(lambda: case.slurm.state(job) in ENDED, "the end of the job", 60)
        assert case.submit("--gpus", "2").returncode == 0
        assert case.job != job
        case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights
