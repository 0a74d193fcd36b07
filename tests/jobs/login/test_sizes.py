"""The sizes of --nodes and --gpus."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.login import sizes
from jobs.login.cluster_config import ClusterConfig
from jobs.login.resources import Resources
from jobs.login.sizes import Size, choose_sizes, describe, requested_sizes, runnable
from jobs.slurm.tables import PartitionNodes
from tests.helpers.local_runs import submit
from vit.config.schema import Config
from vit.config.user_error import UserError

FOUR = Config(global_batch=64, micro_batch=16)  # four micro-batches
SIX = Config(global_batch=96, micro_batch=16)
NODES = PartitionNodes(
    partition="gpu", default=True, minutes=None, count=4, gpus=4, cpus=64, memory=1000, gpu_types=(("a100", 4),)
)


def allowed(nodes: str, gpus: str, *configs: Config) -> list[tuple[int, int, str]]:
    found = requested_sizes(nodes, gpus).allowed(configs or [FOUR])
    return [(size.nodes, size.gpus, size.gpu_type) for size in found]


@pytest.mark.parametrize(
    ("nodes", "gpus", "expected"),
    [
        ("1", "4", [(1, 4, "")]),
        ("1", "1-4", [(1, 4, ""), (1, 2, ""), (1, 1, "")]),
        ("1", "1-1000000", [(1, 4, ""), (1, 2, ""), (1, 1, "")]),
        ("1", "1,4", [(1, 4, ""), (1, 1, "")]),
        ("1", "a100:4,v100:2", [(1, 4, "a100"), (1, 2, "v100")]),
        ("1", "v100:1-2, a100:1-4", [(1, 4, "a100"), (1, 2, "v100"), (1, 2, "a100"), (1, 1, "v100"), (1, 1, "a100")]),
        ("1", "3g.20gb:2", [(1, 2, "3g.20gb")]),
        ("1-2", "2", [(2, 2, ""), (1, 2, "")]),
        ("1-2", "1-2", [(2, 2, ""), (1, 2, ""), (2, 1, ""), (1, 1, "")]),
    ],
)
def test_only_sizes_whose_ranks_divide_the_micro_batches_are_submitted(
    nodes: str, gpus: str, expected: list[tuple[int, int, str]]
) -> None:
    """The largest first, and of several with as many ranks the one on the fewest nodes."""
    assert allowed(nodes, gpus) == expected


def test_a_sweep_gets_the_sizes_that_all_its_runs_allow() -> None:
    """Also at each image size of a run."""
    assert allowed("1", "1-6", SIX) == [(1, 6, ""), (1, 3, ""), (1, 2, ""), (1, 1, "")]
    assert allowed("1", "1-6", FOUR, SIX) == [(1, 2, ""), (1, 1, "")]
    stages = replace(FOUR, train_sizes=((0.5, 128, 32), (0.5, 224, 16)))
    assert allowed("1", "1-4", stages) == [(1, 2, ""), (1, 1, "")]


@pytest.mark.parametrize(
    ("nodes", "gpus", "message"),
    [
        ("1", "x", "--gpus 'x': use a whole number such as 4, a range such as 1-4, or one of them for each type"),
        ("1", "2,x", "--gpus '2,x' ('x'): use a whole number"),
        ("1", "1-", "--gpus '1-': use"),
        ("1", "-4", "--gpus '-4': use"),
        ("1", "1-2-4", "--gpus '1-2-4': use"),
        ("1", "4:4", "--gpus '4:4': use"),
        ("1", ":4", "--gpus ':4': use"),
        ("1", "a100:", "--gpus 'a100:' (''): use"),
        ("1", "", "--gpus '': use"),
        ("1", "0", "--gpus must be at least 1, not 0"),
        ("1", "0-4", "--gpus must be at least 1, not 0-4"),
        ("1", "4-1", "--gpus 4-1: a range goes from the smaller to the larger number, 1-4"),
        ("x", "1", "--nodes 'x': use a whole number such as 2, or a range such as 1-2"),
        ("a:1", "1", "--nodes 'a:1': use a whole number"),
        ("0", "1", "--nodes must be at least 1, not 0"),
        (
            "1",
            "3",
            "3 ranks do not divide the 4 micro-batches of a batch (global_batch 64 / micro_batch 16); use 1, 2 or",
        ),
        ("1", "3-3", "3 ranks do not divide the 4 micro-batches"),
        ("1", "a100:3,4", "3 ranks do not divide the 4 micro-batches"),
        ("1", "5-7", "--nodes 1 --gpus 5-7: no size has a number of ranks that divides the micro-batches of a batch; "),
        ("3-4", "2", "--nodes 3-4 --gpus 2: no size has a number of ranks that divides the micro-batches of a batch; "),
        ("1", "4,5-7", "--nodes 1 --gpus 4,5-7 (5-7): no size"),
    ],
)
def test_a_wrong_size_is_named_with_what_is_allowed(nodes: str, gpus: str, message: str) -> None:
    """A range of which nothing is left lists the numbers of ranks that are."""
    with pytest.raises(UserError) as caught:
        allowed(nodes, gpus)
    assert message in str(caught.value)
    if "no size" in message:
        assert str(caught.value).endswith("use 1, 2 or 4 ranks in all")


def resources(size: Size, gres: str = "") -> Resources:
    return Resources(
        nodes=size.nodes,
        gpus=size.gpus,
        gpu_type=size.gpu_type,
        cpus=8,
        use_gpus=True,
        cluster=ClusterConfig(gres=gres),
    )


def test_sizes_that_the_partition_cannot_run_are_left_out_with_a_remark() -> None:
    """Unless none is left: then the message is that of the smallest.  Each number of ranks is on the fewest nodes."""
    remarks: list[str] = []
    found = requested_sizes("1-8", "2-8").allowed([Config(global_batch=1024, micro_batch=16)])
    kept = runnable(found, lambda size: resources(size).check([NODES]), remarks)
    assert [(size.nodes, size.gpus) for size in kept] == [(4, 4), (2, 4), (1, 4), (1, 2)]
    assert remarks == [f"not submitted for {n} GPUs: --nodes 8: partition gpu has only 4" for n in (64, 32)]
    with pytest.raises(UserError, match="--gpus 8: nodes of partition gpu have at most 4"):
        runnable([Size(1, 16), Size(1, 8)], lambda size: resources(size).check([NODES]), [])


def test_types_of_gpus_are_those_of_the_partition() -> None:
    """An unknown one is named together with those that exist."""
    resources(Size(1, 4, "a100")).check([NODES])
    with pytest.raises(UserError, match="--gpus v100:2: partition gpu has types a100"):
        resources(Size(1, 2, "v100")).check([NODES])
    with pytest.raises(UserError, match="has no types of GPUs that have names"):
        resources(Size(1, 2, "v100")).check([replace(NODES, gpu_types=())])
    with pytest.raises(UserError, match="--gpus a100:8: nodes of partition gpu have at most 4"):
        resources(Size(1, 8, "a100")).check([NODES])


@pytest.mark.parametrize(
    ("gres", "why"),
    [("gpu:v100", "it names a type already; use gres gpu"), ("none", "no GPUs are requested; use --gpus w")],
)
def test_a_type_is_not_given_twice(gres: str, why: str) -> None:
    """In gres, and in --gpus."""
    with pytest.raises(UserError, match=f"--gpus a100:4 and gres '{gres}' contradict each other: {why}"):
        resources(Size(1, 4, "a100"), gres)


@pytest.mark.parametrize(("visible", "ranks"), [("0,1,2", 2), ("0", 1), ("0,1,2,3,4,5,6,7", 4)])
def test_without_slurm_a_range_is_the_largest_size_that_this_machine_has_gpus_for(
    visible: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it says so."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found, (remark,) = choose_sizes("1-2", "1-4", [FOUR], "local")
    assert found == [Size(1, ranks)]
    count = len(visible.split(","))
    gpus = f"{count} GPU{'s' if count > 1 else ''}"
    assert f"{ranks} rank" in remark and f"on this machine, which has {gpus}" in remark
    assert choose_sizes("1", "4", [FOUR], "local") == ([Size(1, 4)], [""])


def test_without_gpus_the_cores_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The smallest size runs in any case; on several nodes nothing does."""
    monkeypatch.setattr(sizes, "NVIDIA_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert choose_sizes("1", "1-4", [FOUR], "local")[0] == [Size(1, 2)]
    for name in ("0", "1", "2", "3"):
        (tmp_path / name).mkdir()
    assert choose_sizes("1", "1-4", [FOUR], "local")[0] == [Size(1, 4)]
    assert choose_sizes("1", "1-4", [replace(FOUR, device="cpu")], "local")[0] == [Size(1, 2)]
    assert choose_sizes("1", "4,2", [replace(FOUR, device="cuda")], "local")[0] == [Size(1, 4)]
    assert choose_sizes("1", "4", [replace(FOUR, device="cpu")], "local")[0] == [Size(1, 4)]
    for nodes in ("2", "2-4"):
        with pytest.raises(UserError, match="--nodes 2: without Slurm there is only one node"):
            choose_sizes(nodes, "1-2", [FOUR], "local")


def test_types_of_gpus_are_refused_if_no_gpu_is_used() -> None:
    """The job would not request them."""
    with pytest.raises(UserError, match="--gpus a100:4,v100:2: the config has device: cpu, which uses no GPU"):
        choose_sizes("1", "a100:4,v100:2", [replace(FOUR, device="cpu")], "slurm")
    assert len(choose_sizes("1", "a100:4,v100:2", [FOUR], "slurm")[0]) == 2


def test_each_size_says_whether_its_bits_are_those_of_one_rank() -> None:
    """Not if the micro-batches of a rank are no power of two."""
    found = [Size(1, 6, "a100"), Size(1, 3), Size(1, 2)]
    lines = [describe(size, found, SIX, use_gpus=True) for size in found]
    assert lines[0] == "6 a100 GPUs: 6 ranks, 1 micro-batch each; the bits of 1 rank"
    assert lines[1] == "3 GPUs: 3 ranks, 2 micro-batches each; the bits of 1 rank"
    assert lines[2] == "2 GPUs: 2 ranks, 3 micro-batches each; adds in an order of its own: other bits than 1 rank"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--min-gain", "-1"), "--min-gain must be a number of minutes, at least 0, not -1"),
        (
            ("--gpus", "1-2", "--sweep", "seed=0,1", "--max-parallel", "1"),
            "--max-parallel 1 requires a single size: Slurm",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """In one line."""
    refused = submit(tmp_path, *options)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert message in refused.stderr
