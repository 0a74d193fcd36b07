"""Nodes that lack what a run needs: what doctor.py --submit finds on a real Slurm cluster."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.login.cluster_config import ClusterConfig
from jobs.login.resources import Resources
from jobs.readiness.finding import Finding
from jobs.readiness.node_job import check_nodes
from tests.helpers.data_sets import small_config
from tests.helpers.paths import CHECKOUT
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for


@pytest.fixture
def hide(slurm: Cluster) -> Iterator[Callable[[Path], str]]:
    """Hides a folder on a node, whose name it returns."""

    def hide_on_node(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        slurm.restart("slurmd-n2", hide=folder)
        return "n2"

    yield hide_on_node
    slurm.restart("slurmd-n2")
    slurm.wait_until_idle(120)


def check(slurm: Cluster, data: Path, runs: Path, node: str) -> list[Finding]:
    """Runs the check on that node; no file and no job is left behind."""
    cluster = ClusterConfig(cpus_per_gpu=1, partition="low", sbatch={"nodelist": node})
    resources = Resources(nodes=1, gpus=1, cpus=1, use_gpus=False, cluster=cluster)
    cfg = small_config(data)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.environment.items():
            patch.setenv(name, value)
        found = list(check_nodes(resources, cfg, runs, 90, True, lambda _: None))
    assert not list(runs.iterdir())
    assert not slurm.call("squeue", "-h", "--name", "vit-node-check", "--states", "PENDING,RUNNING")
    return found


def test_a_node_that_does_not_see_the_folder_of_the_runs_is_named(
    slurm: Cluster, hide: Callable[[Path], str], betons: Path, tmp_path: Path
) -> None:
    """With the folder: the job cannot leave any output there that would tell."""
    node = hide(tmp_path / "runs")
    (found,) = check(slurm, betons, tmp_path / "runs", node)
    assert found.level == "FAIL"
    assert f"node {node} probably does not see {tmp_path / 'runs'};" in found.text


def test_data_sets_that_only_the_node_cannot_see_are_named(
    slurm: Cluster, hide: Callable[[Path], str], betons: Path, tmp_path: Path
) -> None:
    """They exist where the command runs, which is why only a job can tell."""
    data = tmp_path / "data"
    data.mkdir()
    for file in betons.glob("*.beton*"):
        shutil.copy(file, data)
    found = check(slurm, data, tmp_path / "runs", hide(data))
    assert [each.check for each in found] == ["node", "matrix product", "node job"], found
    assert found[-1].level == "FAIL"
    assert f"{data}/train.beton does not exist" in found[-1].text


@pytest.mark.parametrize(("stage", "name"), [("--submit", "vit-node-check"), ("--preempt", "vit-preemption-check")])
def test_ctrl_c_cancels_the_job_and_removes_its_folder(
    stage: str, name: str, slurm: Cluster, betons: Path, tmp_path: Path
) -> None:
    """While the job waits to start."""
    runs = tmp_path / "runs"
    command = [sys.executable, "jobs/doctor.py", "--config", "configs/demo.yaml", "--device", "cpu", stage]
    command += ["--data.train", str(betons / "train.beton"), "--data.val", str(betons / "val.beton")]
    command += ["--runs-dir", str(runs), "--partition", "low", "--cpus-per-gpu", "1", "--sbatch", "begin=now+1hour"]
    with (tmp_path / "output").open("w") as output:
        doctor = subprocess.Popen(
            command, cwd=CHECKOUT, env=os.environ | slurm.environment, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: "is waiting to start" in (tmp_path / "output").read_text(), "the job to be submitted", 60)
        doctor.send_signal(signal.SIGINT)
        assert doctor.wait(30) == 130
    finally:
        doctor.kill()
    assert not slurm.call("squeue", "-h", "--name", name, "--states", "PENDING,RUNNING")
    assert not list(runs.iterdir())
    assert "Traceback" not in (tmp_path / "output").read_text()
