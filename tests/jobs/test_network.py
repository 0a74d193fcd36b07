"""Runs on one machine without a network: in network namespaces of their own, with a host name that does not resolve."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.local_runs import SUBMIT, settings
from tests.helpers.paths import ROOT
from vit.run.folder import RunFolder

UP = "ip link set lo up"
TRAIN = [sys.executable, "-m", "vit.train", "--config", str(ROOT / "configs" / "demo.yaml"), "--run-dir", "run"]


def run_without_network(cwd: Path, network: str, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Runs a command in a new network namespace, after the shell commands `network`; no process of it is left."""
    isolated = ["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    tools = all(map(shutil.which, ("unshare", "ip", "hostname")))
    if not tools or subprocess.run([*isolated, UP], capture_output=True, check=False).returncode:
        pytest.skip("namespaces need root, and the commands unshare, ip and hostname")
    # Without the choice of an interface that a process group of this process has left.
    environment = {k: v for k, v in os.environ.items() if k != "GLOO_SOCKET_IFNAME"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*isolated, f'hostname no-such-host && {network} && "$@"', "sh", *command], cwd=cwd, capture_output=True,
        env=environment, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "network", [UP, f"{UP} && ip address del 127.0.0.1/8 dev lo"], ids=["name does not resolve", "only IPv6 loopback"]
)
def test_two_ranks_train_without_network(network: str, betons: Path, tmp_path: Path) -> None:
    """They communicate through the loopback interface."""
    command = [*SUBMIT, "--cluster", "local", "--gpus", "2", *settings(betons, epochs=2)]
    done = run_without_network(tmp_path, network, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [e["ranks"] for e in RunFolder(tmp_path / "runs" / "demo").events() if e["event"] == "started"] == [2]


def test_without_a_loopback_interface_the_message_says_so(betons: Path, tmp_path: Path) -> None:
    """Not even one rank can train: torch's process group needs an address."""
    done = run_without_network(tmp_path, ":", [*TRAIN, *settings(betons)])
    assert done.returncode == 2
    assert done.stderr.startswith("vit.train: this machine has no loopback interface"), done.stderr
    assert "ip link set lo up" in done.stderr
