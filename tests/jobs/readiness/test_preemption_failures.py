"""Clusters on which a preempted run would lose work: what doctor.py --preempt finds on a real Slurm cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.login.cluster_config import ClusterConfig
from jobs.login.resources import Resources
from jobs.readiness.finding import Finding
from jobs.readiness.preemption import check_preemption
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_config import KILL_WAIT_SECONDS

LONG_SAVE = KILL_WAIT_SECONDS + 60.0  # seconds


@pytest.fixture
def blind_node(slurm: Cluster, tmp_path: Path) -> Iterator[str]:
    """A node on which the folder of the runs is hidden."""
    (tmp_path / "runs").mkdir()
    slurm.restart("slurmd-n2", hide=tmp_path / "runs")
    yield "n2"
    slurm.restart("slurmd-n2")
    slurm.wait_until_idle(120)


def check(slurm: Cluster, runs: Path, save_seconds: float, **sbatch: str) -> dict[str, Finding]:
    """Runs the check on the cluster; no file is left behind."""
    cluster = ClusterConfig(partition="low", sbatch=sbatch)
    resources = Resources(nodes=1, gpus=1, cpus=1, use_gpus=False, cluster=cluster)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        found = {each.check: each for each in check_preemption(resources, runs, 60, save_seconds, lambda _: None)}
    assert not list(runs.iterdir())
    return found


def test_a_save_that_takes_longer_than_the_kill_wait_fails(slurm: Cluster, tmp_path: Path) -> None:
    """By the seconds that Slurm left between SIGTERM and SIGKILL."""
    found = check(slurm, tmp_path / "runs", LONG_SAVE)
    assert found["requeue"].level == "OK", found
    assert found["time to save"].level == "FAIL"
    assert f"a save of this model takes {LONG_SAVE:.1f} s, SIGKILL comes" in found["time to save"].text
    assert "KillWait" in found["time to save"].advice


def test_a_node_that_does_not_see_the_folder_of_the_runs_is_named(
    slurm: Cluster, blind_node: str, tmp_path: Path
) -> None:
    """With the folder, before anything is signaled."""
    found = check(slurm, tmp_path / "runs", 1.0, nodelist=blind_node)
    assert list(found) == ["preemption"], found
    assert found["preemption"].level == "FAIL"
    assert str(tmp_path / "runs") in found["preemption"].text, found
    assert blind_node in found["preemption"].text, found
