"""What the supervisor records about GPUs, on the NVML of the null GPU, and about cores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.null_gpu import environment
from tests.helpers.paths import CHECKOUT
from vit.history.resources import mean_usage, read_usage
from vit.run.folder import RunFolder

# A node with two ranks, one of which this process is: it uses a core.
NODE = """
import os, sys, time
from pathlib import Path
from jobs.node import resource_log
from vit.run.heartbeat import HEARTBEAT_VARIABLE, Heartbeat, HeartbeatSlots

resource_log.FIRST_SECONDS = resource_log.SAMPLE_SECONDS = 0.05
logs, attempts, phase = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
slots = HeartbeatSlots(2)
os.environ[HEARTBEAT_VARIABLE] = slots.name
log = resource_log.ResourceLog(logs, "n1", slots)
for _ in range(attempts):
    with log.attempt():
        beat = Heartbeat(logs)
        beat.beat("step")
        beat.beat(phase)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            pass
print("trained")
"""


def record(folder: Path, *args: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a node whose record is in this run folder."""
    (folder / "logs").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", NODE, str(folder / "logs"), *args],
        cwd=CHECKOUT, env=os.environ | variables, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip


def entries(folder: Path) -> list[dict[str, Any]]:
    """What was recorded."""
    found: list[dict[str, Any]] = json.loads((folder / "logs" / "resources-n1.json").read_text())["attempts"]
    return found


@pytest.mark.parametrize(
    ("visible", "busy", "used"),
    [
        (None, [0.5, 0.51], [1, 2]),
        ("2,1", [0.52, 0.51], [3, 2]),
        ("GPU-3", [0.53], [4]),
        ("1,2,3", [0.51, 0.52], [2, 3]),
    ],
)
def test_only_the_gpus_of_the_ranks_are_watched(
    null_gpu_folder: Path, tmp_path: Path, visible: str | None, busy: list[float], used: list[int]
) -> None:
    """Those in CUDA_VISIBLE_DEVICES, by number or UUID; as many as there are ranks."""
    variables = environment(null_gpu_folder, devices=4) | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    record(tmp_path, "1", "step", **variables)
    (entry,) = entries(tmp_path)
    assert [gpu["utilization"] for gpu in entry["gpus"]] == busy
    assert [gpu["memory_peak"] >> 30 for gpu in entry["gpus"]] == used
    assert {gpu["name"] for gpu in entry["gpus"]} == {"NVIDIA H100 80GB HBM3"}
    usage = mean_usage(read_usage(RunFolder(tmp_path)))
    assert usage is not None and usage.gpu == pytest.approx(sum(busy) / len(busy))
    assert usage.gpu_memory == max(used) << 30
    assert usage.gpu_memory_total is not None and usage.gpu_memory_total >> 30 == 79


def test_without_nvml_only_the_cores_are_watched_and_nothing_is_said(tmp_path: Path) -> None:
    """As on a machine without a driver."""
    done = record(tmp_path, "1", "step")
    assert (done.stdout, done.stderr) == ("trained\n", "")
    (entry,) = entries(tmp_path)
    assert "gpus" not in entry
    assert entry["cores"] == len(os.sched_getaffinity(0))
    assert entry["cpu"] == pytest.approx(1 / entry["cores"], rel=0.6), "one core is busy"


@pytest.mark.parametrize("code", ["999", "15"])
def test_a_driver_that_does_not_work_is_named_once(null_gpu_folder: Path, tmp_path: Path, code: str) -> None:
    """Unknown error, GPU is lost: the run goes on, and so do the next attempts."""
    variables = environment(null_gpu_folder, devices=2) | {"NULL_GPU_NVML_ERROR": code}
    done = record(tmp_path, "3", "step", **variables)
    assert done.stdout == (
        f"the GPUs are not watched: nvmlDeviceGetUtilizationRates returned {code}, see nvmlReturn_t\ntrained\n"
    )
    assert len(entries(tmp_path)) == 3


def test_mig_instances_have_memory_but_no_utilization(null_gpu_folder: Path, tmp_path: Path) -> None:
    """NVML does not support it for them."""
    record(tmp_path, "1", "step", **environment(null_gpu_folder, devices=2) | {"NULL_GPU_NVML_ERROR": "3"})
    assert [(gpu["utilization"], gpu["memory_peak"] >> 30) for gpu in entries(tmp_path)[0]["gpus"]] == [
        (None, 1),
        (None, 2),
    ]


def test_starting_and_compiling_do_not_count(null_gpu_folder: Path, tmp_path: Path) -> None:
    """The GPUs are idle then, whatever the config is."""
    record(tmp_path, "1", "compile", **environment(null_gpu_folder, devices=2))
    assert not (tmp_path / "logs" / "resources-n1.json").exists()


def test_the_record_is_bounded_and_survives_damage(tmp_path: Path) -> None:
    """A node keeps its newest attempts, also those of earlier jobs."""
    (tmp_path / "logs").mkdir()
    file = tmp_path / "logs" / "resources-n1.json"
    file.write_text(json.dumps({"attempts": [{"began": i, "seconds": 5} for i in range(80)]}))
    record(tmp_path, "1", "step")
    assert [entry["began"] for entry in entries(tmp_path)[:2]] == [31, 32]
    assert len(entries(tmp_path)) == 50
    for damaged in ("", "[]", '{"attempts": 5}', '{"attempts": [{"beg'):
        file.write_text(damaged)
        record(tmp_path, "1", "step")
        assert len(entries(tmp_path)) == 1


def test_a_disk_that_cannot_be_written_does_not_disturb_the_run(tmp_path: Path) -> None:
    """One message, for all attempts."""
    (tmp_path / "logs" / "resources-n1.json.tmp").mkdir(parents=True)
    done = record(tmp_path, "3", "step")
    assert done.stdout.count("\n") == 2
    assert done.stdout.startswith("the use of GPUs and cores is not recorded: [Errno 21] Is a directory")
