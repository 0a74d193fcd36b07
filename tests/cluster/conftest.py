"""Fixtures for tests on a real Slurm cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case, new_case, settings
from tests.helpers.slurm_cluster import Cluster
from vit.run.folder import RunFolder


@pytest.fixture
def case(slurm: Cluster, betons: Path, tmp_path: Path) -> Iterator[Case]:
    """A new run on a cluster whose nodes are idle; jobs that a failed test left are canceled."""
    with new_case(slurm, betons, tmp_path) as case:
        yield case


@pytest.fixture(scope="session")
def reference_weights(slurm: Cluster, betons: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run without faults, with two ranks on one node."""
    case = Case(slurm, RunFolder(tmp_path_factory.mktemp("reference") / "runs" / "run"), settings(betons))
    done = case.submit("--gpus", "2")
    assert done.returncode == 0, done.stderr
    case.finish()
    assert case.start_steps() == [0]
    return case.weights()
