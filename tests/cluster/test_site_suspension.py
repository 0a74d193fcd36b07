"""Clusters that suspend jobs: for others of a higher partition, or in turns."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case, campaign, new_case, own_cluster
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_config import NO_ACCOUNTING

SUSPENDED_SECONDS = 40  # more than the time after which a node without heartbeat counts as lost, and than a stall
NODES = "Nodes=n[1-2] MaxTime=INFINITE State=UP"
PARTITIONS = (
    f"low {NODES} Default=YES PriorityTier=1 PreemptMode=SUSPEND OverSubscribe=FORCE:1",
    f"high {NODES} PriorityTier=10 PreemptMode=OFF OverSubscribe=FORCE:1",
    f"shared {NODES} PriorityTier=1 PreemptMode=SUSPEND OverSubscribe=FORCE:2",
)


@pytest.fixture(scope="module")
def gang() -> Iterator[Cluster]:
    """A cluster with PreemptMode=SUSPEND,GANG, and a time slice of five seconds."""
    with own_cluster(
        {**NO_ACCOUNTING, "PreemptMode": "SUSPEND,GANG", "SchedulerTimeSlice": "5"}, PARTITIONS
    ) as cluster:
        yield cluster


@pytest.fixture
def site(gang: Cluster, betons: Path, tmp_path: Path) -> Iterator[Case]:
    """A new run on this cluster."""
    with new_case(gang, betons, tmp_path) as case:
        yield case


@campaign
def test_a_run_that_a_preemption_suspends_continues_at_the_same_step(site: Case, reference_weights: bytes) -> None:
    """On two nodes, for longer than a lost node or a stall would take to be noticed; no step is repeated."""
    slurm, job = site.slurm, site.start("--gpus", "1", "--nodes", "2", "--stall-seconds", "10")
    with site.slowed():
        wrapped = ("-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", f"sleep {SUSPENDED_SECONDS}")
        slurm.call("sbatch", "--partition", "high", *wrapped)
        site.wait_until(lambda: slurm.state(job) == "SUSPENDED", "the suspension", 60)
        assert "running (n[1-2], suspended)" in site.status()
        site.wait_until(lambda: slurm.state(job) == "RUNNING", "the end of the suspension", 120)
    site.finish()
    assert site.start_steps() == [0]
    assert not site.events("restarting in place")
    (suspended,) = site.events("suspended")
    assert suspended["seconds"] >= SUSPENDED_SECONDS - 5
    assert "1 suspension by Slurm or by hand took" in site.status()
    assert site.weights() == reference_weights


@campaign
def test_two_runs_that_take_turns_on_the_same_cores_end_with_the_same_bits(
    site: Case, tmp_path: Path, reference_weights: bytes
) -> None:
    """Gang scheduling suspends each of them every five seconds."""
    options = ("--gpus", "2", "--cpus-per-gpu", "8", "--partition", "shared", "--sbatch", "nodelist=n1")
    with new_case(site.slurm, Path(site.options[1]).parent, tmp_path / "other") as other:
        (tmp_path / "other").mkdir()
        both = (site, other)
        for case in both:
            done = case.submit(*options)
            assert done.returncode == 0, done.stderr
        seen: dict[str, set[str]] = {case.job: set() for case in both}

        def finished() -> bool:
            for case in both:
                seen[case.job].add(site.slurm.state(case.job))
            return all(case.run.finished() for case in both)

        with site.slowed(), other.slowed():
            site.wait_until(finished, "the end of both runs")
        assert "SUSPENDED" in set.union(*seen.values())
        for case in both:
            assert case.start_steps() == [0]
            assert case.weights() == reference_weights
