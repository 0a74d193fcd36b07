"""The stages of doctor.py that run jobs: their options, and the cluster file that is written."""

import shutil
from pathlib import Path

import pytest

from jobs import doctor
from jobs.login import cluster_config
from jobs.login.cluster_config import ClusterConfig
from jobs.readiness import cluster_file
from jobs.readiness.cluster_file import render, write_cluster_file
from tests.helpers.paths import CHECKOUT
from tests.helpers.slurm_cluster import Cluster


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of cluster files that takes the place of configs/clusters."""
    folder = tmp_path / "clusters"
    folder.mkdir()
    shutil.copy(cluster_config.CLUSTERS_FOLDER / "generic.yaml", folder)
    monkeypatch.setattr(cluster_file, "CLUSTERS_FOLDER", folder)
    return folder


def test_what_was_measured_becomes_a_cluster_file(
    slurm: Cluster, clusters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the options of the command; a file of that name is never replaced."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(CHECKOUT)
    options = ["--partition", "low", "--cpus-per-gpu", "1", "--runs-dir", str(tmp_path / "runs")]
    doctor.main([*options, "--preempt", "--write", "mine"])
    out = capsys.readouterr().out
    assert "OK    cluster file" in out and "--cluster-config mine" in out, out
    written = cluster_config.load(str(clusters / "mine.yaml"), {})
    assert written == ClusterConfig(partition="low", cpus_per_gpu=1, signal="USR2@120")
    before = (clusters / "mine.yaml").read_bytes()
    assert doctor.main([*options, "--preempt", "--write", "mine"]) == 2
    assert "mine.yaml exists; choose another name" in capsys.readouterr().err
    assert (clusters / "mine.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--submit"], "--submit requires --config FILE"),
        (["--write", "mine"], "--write requires --preempt"),
        (["--preempt", "--write", "../mine"], "--write ../mine: use letters"),
        (["--preempt", "--wait", "0"], "--wait must be positive, not 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is checked."""
    assert doctor.main(options) == 2
    assert f"doctor.py: {message}" in capsys.readouterr().err


def test_the_written_cluster_file_is_read_back(clusters: Path) -> None:
    """Every option, with characters that mean something in YAML; each with its comment; never over another file."""
    cluster = ClusterConfig(
        partition="gpu,long", account="0123", time="12:00:00", mem="0", requeue=False, signal="USR2@150",
        setup=("source env.sh # x", "export A='b: c'"), sbatch={"comment": "a: #b"}, cpus_per_gpu=12,
    )  # fmt: skip
    path = write_cluster_file("mine", cluster)
    assert cluster_config.load(str(path), {}) == cluster
    assert "# CPU cores per GPU, for decoding" in path.read_text()
    with pytest.raises(FileExistsError):
        write_cluster_file("mine", cluster)
    assert render("x", ClusterConfig()).splitlines()[-1].startswith("signal: USR2@120   # save this many seconds")
