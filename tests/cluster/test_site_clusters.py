"""A site with several clusters behind one login node: SLURM_CLUSTERS names the one of a run."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.site_wrappers import wrapped
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.waiting import wait_for


def test_what_would_ask_several_clusters_is_refused_in_one_line(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch's own option and variable, and a list of clusters."""
    done = case.submit("--sbatch", "clusters=other")
    assert done.returncode == 2
    assert "sbatch.clusters is not allowed: it is set by the variable SLURM_CLUSTERS" in done.stderr
    monkeypatch.setenv("SBATCH_CLUSTERS", "other")
    done = case.submit()
    assert done.returncode == 2 and "use export SLURM_CLUSTERS=other instead" in done.stderr.splitlines()[-1]
    monkeypatch.setenv("SBATCH_CLUSTERS", "")
    monkeypatch.setenv("SLURM_CLUSTERS", "test,other")
    done = case.submit()
    assert done.returncode == 2 and "a run belongs to one cluster" in done.stderr.splitlines()[-1]
    assert not case.run.events()


@pytest.fixture
def other(slurm: Cluster) -> Iterator[Cluster]:
    """A second cluster, with the accounting and the keys of the first one."""
    conf = dict(line.split("=", 1) for line in (slurm.dir / "etc" / "slurm.conf").read_text().splitlines())
    shared = {name: conf[name] for name in ("AccountingStoragePort", "AccountingStoragePass", "AuthInfo")}
    slurm.call("sacctmgr", "-i", "add", "cluster", "other", check=False)
    # With a space, so that the helper starts no database for it.
    cluster = Cluster({"ClusterName": "other", "AccountingStorageType": "accounting_storage/slurmdbd ", **shared})
    yield cluster
    cluster.stop()
    slurm.call("sacctmgr", "-i", "delete", "cluster", "other", check=False)


@campaign
def test_a_run_on_another_cluster_is_found_there_and_only_there(
    case: Case, other: Cluster, reference_weights: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is submitted, looked at and requeued there; without SLURM_CLUSTERS both commands say what to set."""
    wait_for(lambda: "other" in case.slurm.call("sacctmgr", "-n", "show", "cluster", "format=cluster"), "the cluster")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    done = case.submit("--gpus", "2", "--time", "50")
    assert done.returncode == 0, done
    assert case.events("submitted")[0]["cluster"] == "other"
    assert other.state(case.job)
    assert "unknown" not in case.status()

    monkeypatch.delenv("SLURM_CLUSTERS")
    assert "unknown" in case.status()
    again = case.submit("--gpus", "2", "--time", "50")
    assert again.returncode == 1
    assert f"job {case.job} is on cluster other: export SLURM_CLUSTERS=other" in again.stderr

    there = replace(case, slurm=other)
    there.wait_until(lambda: case.steps_done() > 2, "some steps")
    there.requeue_and_finish()
    assert case.weights() == reference_weights
    assert os.environ.get("SLURM_CLUSTERS") is None


@campaign
def test_a_wrapper_that_sends_jobs_to_another_cluster_is_noticed(case: Case, other: Cluster, tmp_path: Path) -> None:
    """The job is canceled, and one line says which variable to set."""
    site = replace(case, slurm=wrapped(tmp_path / "bin", case.slurm, {"sbatch": '{command} -M other "$@"'}))
    done = site.submit("--gpus", "2", "--sbatch", "begin=now+60")
    assert done.returncode == 1
    assert "to cluster other" in done.stderr and "export SLURM_CLUSTERS=other" in done.stderr
    assert not case.events("submitted")
    wait_for(lambda: not other.call("squeue", "--noheader"), "the job to be canceled")
