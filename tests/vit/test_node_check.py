"""What is found out about a node before ranks start on it; and what follows, from what all nodes of a job found."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from jobs.node.node_health import failures
from tests.helpers.slurm_cluster import free_ports
from vit.config import schema
from vit.config.schema import Config, ModelConfig
from vit.node_check import rounds

SOME = Config(device="cpu", global_batch=64, micro_batch=8, model=ModelConfig(width=16, depth=1, heads=2, mlp_dim=16))

# Python runs it first: from then on the product of two matrices is wrong in one place.
WRONG = """
import torch
right = torch.Tensor.__matmul__
def wrong(a, b):
    c = right(a, b)
    c[500, 300] += 1
    return c
torch.Tensor.__matmul__ = wrong
"""


def run_folder(path: Path, cfg: Config = SOME) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(schema.to_yaml(cfg))
    return path


def started(
    run: Path, *options: str, within: tuple[str, ...] = (), path: Path | None = None, **variables: str
) -> "subprocess.Popen[str]":
    """The check of a node, in `within` a namespace of its own; with a module path, and variables, of its own."""
    command = [*within, sys.executable, "-m", "vit.node_check", "--run-dir", str(run), "--ranks", "2", *options]
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {}) | variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def found(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def of_two_nodes(run: Path, **second: Any) -> list[dict[str, Any]]:
    """What two nodes find, the second in circumstances of its own."""
    meet = ("--nodes", "2", "--store", f"127.0.0.1:{free_ports(1)[0]}")
    first = started(run, "--node", "0", "--name", "n1", *meet)
    return [found(process) for process in (first, started(run, "--node", "1", "--name", "n2", *meet, **second))]


def own_mounts(script: str) -> tuple[str, ...]:
    """A prefix for a command that then has mounts of its own, made by the script."""
    within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{script} && exec "$@"', "sh")
    if os.geteuid() or subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own can be made here")
    return within


def test_nodes_that_are_well_say_nothing(tmp_path: Path) -> None:
    """Two of them: they see each other's files, and sum; nothing is left in the run folder."""
    words = of_two_nodes(run_folder(tmp_path / "run"))
    for word, name in zip(words, ("n1", "n2"), strict=True):
        assert word.pop("seconds") < 60
        assert word == {"node": name, "notes": [], "unseen": [], "unheard": []}
    assert failures(words) == []
    assert not list((tmp_path / "run" / "health").iterdir())


def test_a_node_that_computes_wrongly_is_named(tmp_path: Path) -> None:
    """One number of a million, wrong by one."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(WRONG)
    (failure,) = failures([found(started(run_folder(tmp_path / "run"), "--name", "n2", path=tmp_path / "modules"))])
    assert (failure.kind, failure.node) == ("sick", "n2")
    assert failure.told() == "n2 is not fit for this run: cpu computes a wrong product of two matrices"


def test_a_node_with_another_folder_in_the_place_of_the_run_folder_is_named(tmp_path: Path) -> None:
    """A stale mount: the node has all it needs to start, and what it writes is lost to the others."""
    run = run_folder(tmp_path / "run")
    keep = f"cp {run}/config.yaml {tmp_path} && mount -t tmpfs tmpfs {run} && cp {tmp_path}/config.yaml {run}"
    words = of_two_nodes(run, within=own_mounts(keep))
    assert [word["unseen"] for word in words] == [["n2"], ["n1"]]
    (failure,) = failures(words)
    assert (failure.kind, failure.node) == ("sick", "n2")
    assert "n1 and n2 do not see the same run folder" in failure.reason


def test_nodes_that_cannot_sum_are_named(tmp_path: Path) -> None:
    """The network between them is not there; the store, which is on another one, is."""
    run = run_folder(tmp_path / "run")
    meet = ("--nodes", "2", "--store", f"127.0.0.1:{free_ports(1)[0]}")
    both = [started(run, "--node", str(i), "--name", f"n{i + 1}", *meet, GLOO_SOCKET_IFNAME="gone0") for i in range(2)]
    words = [found(process) for process in both]
    assert [word["unheard"] for word in words] == [["n2"], ["n1"]]
    (failure,) = failures(words)
    assert (failure.kind, failure.node) == ("sick", "n2")
    assert "n1 and n2 do not hear each other" in failure.reason


def test_a_node_that_cannot_write_is_named(tmp_path: Path) -> None:
    """Its mount of the run folder is read-only."""
    run = run_folder(tmp_path / "run")
    read_only = own_mounts(f"mount --bind {run} {run} && mount -o remount,ro,bind {run}")
    (failure,) = failures([found(started(run, "--name", "n2", within=read_only))])
    assert (failure.kind, failure.node) == ("sick", "n2")
    assert failure.reason.endswith(f"nothing can be written in {run}: Read-only file system")


def test_a_full_disk_is_only_told(tmp_path: Path) -> None:
    """The run trains on, and saves when there is room."""
    run = tmp_path / "run"
    run.mkdir()
    cfg = replace(SOME, model=ModelConfig())
    (tmp_path / "config.yaml").write_text(schema.to_yaml(cfg))
    fill = f"mount -t tmpfs -o size=64k tmpfs {run} && cp {tmp_path}/config.yaml {run} && dd if=/dev/zero of={run}/full"
    word = found(started(run, within=own_mounts(f"{{ {fill} || true; }} 2>/dev/null")))
    assert "unfit" not in word
    assert word["notes"] == [f"{run} has 0.0 GB free, and 2 checkpoints and a new one need 3.1 GB"]
    assert failures([word]) == []


def test_more_than_there_is_is_told_before_it_fails(tmp_path: Path) -> None:
    """A model that no memory holds needs the user; GPUs that torch does not see, another node."""
    huge = replace(SOME, model=ModelConfig(width=16384, heads=16, depth=64, mlp_dim=65536))
    (failure,) = failures([found(started(run_folder(tmp_path / "huge", huge)))])
    assert failure.kind == "user"
    assert "GB of memory, and" in failure.reason
    (failure,) = failures([found(started(run_folder(tmp_path / "gpus", replace(SOME, device="cuda"))))])
    assert failure.kind == "sick"
    assert "torch sees 0 GPUs, and 2 ranks want one each (--device cpu trains without)" in failure.reason


@pytest.mark.parametrize("nodes", range(2, 10))
def test_every_pair_of_nodes_is_tried_once_and_no_node_twice_at_a_time(nodes: int) -> None:
    """Else who waits for a sick one would look sick itself."""
    pairs = [pair for at_once in rounds(nodes) for pair in at_once]
    assert sorted(pairs) == list(combinations(range(nodes), 2))
    for at_once in rounds(nodes):
        busy = [node for pair in at_once for node in pair]
        assert len(busy) == len(set(busy))


def test_who_most_nodes_miss_is_the_sick_one() -> None:
    """Of three or more; what a sick node says of others does not count."""
    words = [
        {"node": "n1", "unheard": ["n2"]},
        {"node": "n2", "unheard": ["n1", "n3"]},
        {"node": "n3", "unheard": ["n2"], "unseen": ["n4"]},
        {"node": "n4", "unfit": "cuda:1 computes nothing", "unseen": ["n1", "n2", "n3"]},
    ]
    assert sorted(failure.node for failure in failures(words)) == ["n2", "n4"]
    assert failures([{"node": "n1", "unheard": ["n2"]}, {"node": "n2", "unheard": ["n1"]}])[0].node == "n2"
