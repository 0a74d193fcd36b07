"""Nodes with domain names, in a network that their names do not resolve to: they meet on the network of Slurm."""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.slurm_cluster import Cluster, missing
from tests.helpers.slurm_config import NO_ACCOUNTING, SEARCH_PATH
from tests.helpers.two_networks import two_networks
from vit.run.folder import RunFolder

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not shutil.which("ip", path=SEARCH_PATH), reason="ip not found (apt-get install iproute2)"),
]


@pytest.fixture
def apart(case: Case, tmp_path: Path) -> Iterator[Case]:
    """A run on nodes n1.example.org and n2.example.org, whose host names are n1 and n2."""
    with two_networks(tmp_path, 2) as (address, nodes):
        host = f"{socket.gethostname().partition('.')[0]}({address})"
        settings = {"SlurmctldHost": host, "CommunicationParameters": None} | NO_ACCOUNTING
        cluster = Cluster(settings, nodes=nodes)
        try:
            yield replace(case, slurm=cluster, run=RunFolder(tmp_path / "runs" / "run"))
        finally:
            cluster.stop()


@campaign
@pytest.mark.timeout(900)
def test_nodes_that_see_each_other_only_on_a_second_network_train(apart: Case, reference_weights: bytes) -> None:
    """Also after a rank was killed, and after a requeue."""
    apart.start("--nodes", "2", "--gpus", "1")
    with apart.slowed():
        apart.ranks()[1].kill()
        apart.wait_until(lambda: apart.events("restarting in place"), "the restart")
        apart.wait_until(lambda: len(apart.start_steps()) > 1, "the ranks")
        # Slurm 25.11 requeues it and says "Unexpected message received", also if the job is of two lines of shell.
        apart.slurm.call("scontrol", "requeue", apart.job, check=False)
        apart.wait_until(lambda: apart.events("stopped"), "the save")
    apart.finish()
    assert "n1.example.org" in str(apart.events("supervising")[0]["node"])
    assert apart.weights() == reference_weights
