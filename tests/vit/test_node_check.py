"""The node health check finds unhealthy nodes before ranks start, from the results of all nodes of a job."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from jobs.node.node_check_runner import failures
from tests.helpers.ports import free_ports
from vit.config import schema
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.node_check import pairing_rounds

SMALL = Config(device="cpu", global_batch=64, micro_batch=8, model=ModelConfig(width=16, depth=1, heads=2, mlp_dim=16))

# A sitecustomize.py, which Python imports at startup: one element of each matrix product is wrong.
WRONG_MATMUL = """
import torch
correct = torch.Tensor.__matmul__
def wrong(a, b):
    c = correct(a, b)
    c[500, 300] += 1
    return c
torch.Tensor.__matmul__ = wrong
"""


def run_folder(path: Path, cfg: Config = SMALL) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(schema.to_yaml(cfg))
    return path


def start_check(
    run: Path, *options: str, prefix: tuple[str, ...] = (), path: Path | None = None, **variables: str
) -> "subprocess.Popen[str]":
    """Starts the check of a node, optionally behind a command prefix, with a PYTHONPATH and environment variables."""
    command = [*prefix, sys.executable, "-m", "vit.node_check", "--run-dir", str(run), "--ranks", "2", *options]
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {}) | variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def check_two_nodes(run: Path, **second: Any) -> list[dict[str, Any]]:
    """The results of two nodes; `second` are arguments for the second node only."""
    job = ("--nodes", "2", "--store", f"127.0.0.1:{free_ports(1)[0]}")
    first = start_check(run, "--node", "0", "--name", "n1", *job)
    return [result(process) for process in (first, start_check(run, "--node", "1", "--name", "n2", *job, **second))]


def private_mounts(script: str) -> tuple[str, ...]:
    """A command prefix that runs the command in a new mount namespace, after a script that mounts."""
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{script} && exec "$@"', "sh")
    if os.geteuid() or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("requires root and mount namespaces")
    return prefix


def test_healthy_nodes_report_nothing(tmp_path: Path) -> None:
    """Two nodes read each other's files and run an all-reduce; nothing is left in the run folder."""
    results = check_two_nodes(run_folder(tmp_path / "run"))
    for report, name in zip(results, ("n1", "n2"), strict=True):
        assert report.pop("seconds") < 60
        assert report == {"node": name, "notes": [], "unseen": [], "unheard": []}
    assert failures(results) == []
    assert not list((tmp_path / "run" / "health").iterdir())


def test_a_node_that_returns_a_wrong_matrix_product_is_unhealthy(tmp_path: Path) -> None:
    """One element of a million is wrong, by one."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(WRONG_MATMUL)
    (failure,) = failures(
        [result(start_check(run_folder(tmp_path / "run"), "--name", "n2", path=tmp_path / "modules"))]
    )
    assert (failure.kind, failure.node) == ("unhealthy", "n2")
    assert failure.message() == "n2 failed the node health check: cpu returned a wrong matrix product"


def test_a_node_that_does_not_share_the_run_folder_is_unhealthy(tmp_path: Path) -> None:
    """With a stale mount, a node has all files that it needs to start, but the others do not see what it writes."""
    run = run_folder(tmp_path / "run")
    stale = f"cp {run}/config.yaml {tmp_path} && mount -t tmpfs tmpfs {run} && cp {tmp_path}/config.yaml {run}"
    results = check_two_nodes(run, prefix=private_mounts(stale))
    assert [report["unseen"] for report in results] == [["n2"], ["n1"]]
    (failure,) = failures(results)
    assert (failure.kind, failure.node) == ("unhealthy", "n2")
    assert "n1 and n2 do not see the same run folder" in failure.reason


def test_a_node_that_cannot_communicate_is_unhealthy(tmp_path: Path) -> None:
    """The network interface for the all-reduce does not exist, while the store is reachable."""
    run = run_folder(tmp_path / "run")
    job = ("--nodes", "2", "--store", f"127.0.0.1:{free_ports(1)[0]}")
    both = [
        start_check(run, "--node", str(i), "--name", f"n{i + 1}", *job, GLOO_SOCKET_IFNAME="gone0") for i in range(2)
    ]
    results = [result(process) for process in both]
    assert [report["unheard"] for report in results] == [["n2"], ["n1"]]
    (failure,) = failures(results)
    assert (failure.kind, failure.node) == ("unhealthy", "n2")
    assert "n1 and n2 cannot communicate with each other" in failure.reason


def test_a_node_that_cannot_write_to_the_run_folder_is_unhealthy(tmp_path: Path) -> None:
    """Its mount is read-only."""
    run = run_folder(tmp_path / "run")
    read_only = private_mounts(f"mount --bind {run} {run} && mount -o remount,ro,bind {run}")
    (failure,) = failures([result(start_check(run, "--name", "n2", prefix=read_only))])
    assert (failure.kind, failure.node) == ("unhealthy", "n2")
    assert failure.reason.endswith(f"cannot write to {run}: Read-only file system")


def test_a_full_disk_is_only_a_warning(tmp_path: Path) -> None:
    """The run trains, and saves once there is space."""
    run = tmp_path / "run"
    run.mkdir()
    cfg = replace(SMALL, model=ModelConfig())
    (tmp_path / "config.yaml").write_text(schema.to_yaml(cfg))
    fill = f"mount -t tmpfs -o size=64k tmpfs {run} && cp {tmp_path}/config.yaml {run} && dd if=/dev/zero of={run}/full"
    report = result(start_check(run, prefix=private_mounts(f"{{ {fill} || true; }} 2>/dev/null")))
    assert "unfit" not in report
    assert report["notes"] == [f"{run} has 0.0 GB free, but 2 checkpoints and a new one need 3.1 GB"]
    assert failures([report]) == []


def test_insufficient_memory_and_missing_gpus_are_reported(tmp_path: Path) -> None:
    """A model that fits into no node is an error of the user; GPUs that torch does not see, of the node."""
    huge = replace(SMALL, model=ModelConfig(width=16384, heads=16, depth=64, mlp_dim=65536))
    (failure,) = failures([result(start_check(run_folder(tmp_path / "huge", huge)))])
    assert failure.kind == "user"
    assert "GB of memory, but" in failure.reason
    (failure,) = failures([result(start_check(run_folder(tmp_path / "gpus", replace(SMALL, device="cuda"))))])
    assert failure.kind == "unhealthy"
    assert "torch sees 0 GPUs, but 2 ranks need one each (--device cpu trains without)" in failure.reason


@pytest.mark.parametrize("nodes", range(2, 10))
def test_every_pair_of_nodes_is_tested_once_and_no_node_twice_in_a_round(nodes: int) -> None:
    """Otherwise a node that waits for an unhealthy one would look unhealthy itself."""
    pairs = [pair for group in pairing_rounds(nodes) for pair in group]
    assert sorted(pairs) == list(combinations(range(nodes), 2))
    for group in pairing_rounds(nodes):
        busy = [node for pair in group for node in pair]
        assert len(busy) == len(set(busy))


def test_the_node_that_most_others_cannot_reach_is_unhealthy() -> None:
    """Among three or more nodes; reports of an unhealthy node about others do not count."""
    results = [
        {"node": "n1", "unheard": ["n2"]},
        {"node": "n2", "unheard": ["n1", "n3"]},
        {"node": "n3", "unheard": ["n2"], "unseen": ["n4"]},
        {"node": "n4", "unfit": "cuda:1 cannot multiply matrices", "unseen": ["n1", "n2", "n3"]},
    ]
    assert sorted(failure.node for failure in failures(results)) == ["n2", "n4"]
    assert failures([{"node": "n1", "unheard": ["n2"]}, {"node": "n2", "unheard": ["n1"]}])[0].node == "n2"
