"""What doctor.py --submit measures on the nodes, by a job of its own on a real Slurm cluster."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.login.cluster_config import ClusterConfig
from jobs.login.resources import Resources
from jobs.readiness.finding import Finding
from jobs.readiness.node_figures import judge
from jobs.readiness.node_job import check_nodes
from tests.helpers.data_sets import small_config
from tests.helpers.slurm_cluster import Cluster
from vit.config.schema import Config
from vit.node_benchmark.__main__ import short_run


@pytest.fixture
def on_cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slurm's commands use the test cluster."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return


def request(nodes: int = 1, gpus: int = 2, **cluster: object) -> Resources:
    """What a user requests, of the given cluster options."""
    options = ClusterConfig(cpus_per_gpu=1, partition="low", **cluster)  # type: ignore[arg-type]
    return Resources(nodes=nodes, gpus=gpus, cpus=gpus, use_gpus=False, cluster=options)


def check(cfg: Config, runs: Path, resources: Resources, on_slurm: bool = True, wait: float = 90) -> list[Finding]:
    """Runs the check; no file is left behind."""
    saves: list[float] = []
    found = list(check_nodes(resources, cfg, runs, wait, on_slurm, lambda _: None, saves.append))
    assert not list(runs.iterdir())
    assert bool(saves) == any(each.check == "save" for each in found)
    return found


@pytest.mark.parametrize(("nodes", "on_slurm"), [(1, False), (2, True)])
def test_all_parts_are_measured(nodes: int, on_slurm: bool, on_cluster: None, betons: Path, tmp_path: Path) -> None:
    """On this machine without Slurm, and on two nodes of a cluster, with two ranks in all."""
    found = check(small_config(betons), tmp_path / "my runs", request(nodes, 2 // nodes), on_slurm)
    levels = {each.check: each.level for each in found}
    assert list(levels) == ["node", "matrix product", "gradient sum", "decoding", "training", "save"], found
    assert levels["node"] == levels["training"] == levels["save"] == "OK"
    text = {each.check: each.text for each in found}
    assert text["node"].startswith(f"{nodes} node{'s' * (nodes > 1)} of {2 // nodes} x cpu")
    assert " images/s; the first step took" in text["training"]


def test_a_data_set_that_the_node_cannot_read_is_named(on_cluster: None, betons: Path, tmp_path: Path) -> None:
    """With the message of the trainer; what was measured before it is shown all the same."""
    cfg = small_config(betons)
    cfg = replace(cfg, data=replace(cfg.data, train=tmp_path / "no.beton"))
    found = check(cfg, tmp_path / "runs", request())
    assert [each.check for each in found] == ["node", "matrix product", "gradient sum", "node job"]
    assert found[-1].level == "FAIL"
    assert found[-1].text == f"failed after the sums: {tmp_path}/no.beton does not exist"
    assert f"data_prep.write_beton imagefolder FOLDER --out {tmp_path}/no.beton creates it" in found[-1].advice


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"python": "/no/python"}, "/no/python: not found"),
        ({"setup": ("exit 3",)}, "ended before Python ran: no output"),
        ({"sbatch": {"begin": "now+1hour"}}, "after 2 s, job "),
        ({"reservation": "none"}, "--reservation none: Slurm says"),
    ],
)
def test_a_job_that_does_not_run_is_explained(
    options: dict[str, Any], text: str, on_cluster: None, betons: Path, tmp_path: Path
) -> None:
    """No Python on the node, set-up that fails, a job that waits, a request that Slurm rejects."""
    (found,) = check(small_config(betons), tmp_path / "runs", request(**options), wait=2 if "sbatch" in options else 60)
    assert found.level == "FAIL"
    assert text in found.text
    assert found.advice


GPU = {"device": "NVIDIA A100-SXM4-80GB", "nodes": 1, "ranks": 4, "cores": 32, "memory": 85e9, "peers": 3}
NODE = GPU | {"part": "node", "driver": "570.1", "cuda": "13.0", "nccl": "2.27.5"}
SUM = {"seconds": 0.002, "gigabytes_per_second": 250.0}
PARTS = [
    NODE,
    {"part": "matrix product", "teraflops": 240.0},
    {"part": "sums", "bytes": 346_000_000, "all_reduce": SUM, "fixed_order": SUM},
    {"part": "decoding", "images_per_second": 9000.0},
    {"part": "training", "steps": 20, "images_per_second": 4800.0, "data_wait": 0.01, "first_step_seconds": 41.0}
    | {"peak_memory": 31e9},
    {"part": "save", "seconds": 3.2, "bytes": 1_040_000_000},
]


def judged(changes: dict[str, dict[str, Any]], cfg: Config | None = None) -> dict[str, Finding]:
    """The findings for four GPUs, of which some figures are changed."""
    parts = [part | changes.get(str(part["part"]), {}) for part in PARTS]
    parts += [{"part": "error", **changes["error"]}] if "error" in changes else []
    resources = Resources(nodes=1, gpus=4, cpus=32, use_gpus=True, cluster=ClusterConfig())
    return {each.check: each for each in judge(parts, resources, cfg or Config(precision="bf16"))}


def test_good_figures_are_good() -> None:
    """With what they mean."""
    found = judged({})
    assert {each.level for each in found.values()} == {"OK"}
    assert found["node"].text.startswith(
        "1 node of 4 x NVIDIA A100-SXM4-80GB, 32 cores each, 85 GB per GPU; driver 570.1"
    )
    assert found["matrix product"].text == "240 TFLOP/s in bf16, 77% of the card's 312"
    assert found["gradient sum"].text.endswith("; 0.6% of a step, if nothing overlaps")
    assert found["decoding"].text == "9,000 images/s on 32 cores; 4 GPUs can train on 4,848"
    assert found["training"].text.startswith("20 steps: 4,800 images/s, 41% of the peak FLOP/s; 31 of 85 GB")
    assert found["save"].text == "1,040 MB in 3.2 s"


def test_the_length_of_a_run_counts_the_pixels_of_its_images(betons: Path) -> None:
    """Measured is a step at `model.image_size`; half of the images have a quarter of its pixels."""
    cfg = Config(epochs=300, global_batch=64, micro_batch=64, data=small_config(betons).data)
    slow = {"training": {"images_per_second": 10.0}}
    assert judged(slow, cfg)["training"].text.endswith("; all 300 epochs take 4:16:00")
    grows = replace(cfg, train_sizes=((0.5, 112), (0.5, 224)))
    assert judged(slow, grows)["training"].text.endswith("; all 300 epochs take 2:40:00")
    assert short_run(grows).train_sizes == ()
    own = replace(cfg, train_sizes=((0.5, 112), (0.5, 224, cfg.micro_batch // 2)))
    assert short_run(own).micro_batch == cfg.micro_batch // 2, "the memory of another micro-batch says nothing"


@pytest.mark.parametrize(
    ("part", "change", "check_name", "level", "text", "advice"),
    [
        ("node", {"peers": 0}, "node", "WARN", "0 of the 3 others", "topo"),
        ("matrix product", {"teraflops": 90.0}, "matrix product", "WARN", "29% of the card's 312", "nvidia-smi"),
        ("sums", {"fixed_order": SUM | {"seconds": 0.2}}, "gradient sum", "WARN", "62.5% of a step", "NCCL_SOCKET"),
        ("training", {"data_wait": 0.31}, "decoding", "WARN", "31% of the time", "--cpus-per-gpu 9"),
        ("save", {"problem": "no space left"}, "save", "FAIL", "no space left", "disk"),
        ("error", {"error": "UserError: a; b"}, "node job", "FAIL", "failed after the save: a", "b"),
    ],
)
def test_bad_figures_say_what_to_do(
    part: str, change: dict[str, Any], check_name: str, level: str, text: str, advice: str
) -> None:
    """GPUs without direct connection, throttled, a slow network, too few cores, a full disk."""
    found = judged({part: change})[check_name]
    assert found.level == level
    assert text in found.text
    assert advice in found.advice


def test_a_node_without_a_visible_gpu_fails() -> None:
    """GPUs were requested, but torch does not see them."""
    node = {"part": "node", "device": "cpu", "nodes": 1, "ranks": 4, "cores": 32}
    resources = Resources(nodes=1, gpus=4, cpus=32, use_gpus=True, cluster=ClusterConfig())
    (found,) = judge([node], resources, Config())
    assert (found.level, found.text) == ("FAIL", "1 node of 4 x cpu, 32 cores each: torch sees no GPU")
