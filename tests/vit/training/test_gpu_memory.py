"""A run that does not fit into the memory of its GPUs ends with a sentence that names a micro-batch which fits."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.data_sets import small_config
from tests.helpers.paths import CHECKOUT, CONFIGS
from vit.config.parser import load_config
from vit.config.schema import to_yaml
from vit.distributed.world import World
from vit.run.folder import RunFolder
from vit.training.gpu_memory import USABLE, _message, memory_options, smaller_micro_batch, step_bytes

GIB = 2**30
# A rank on a GPU that is full, on a machine without one: gloo stands in for NCCL, and torch's error is raised.
FULL_GPU = """
import sys
from unittest import mock
import torch
from tests.helpers.gpu_ranks import joined_as_on_gpus
from vit import train
from vit.training import trainer

def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")

trainer.check_data_sets = fail
train.join_process_group = lambda cfg: joined_as_on_gpus(cfg, torch.distributed.destroy_process_group)
torch.cuda.mem_get_info = lambda _: (100, {total})
torch.cuda.memory_reserved = lambda _: {reserved}
train.main(sys.argv[1:])
"""


def train_on_full_gpu(run: RunFolder, data: Path, total: int, reserved: int) -> "subprocess.CompletedProcess[str]":
    """Starts a training of a small model on a GPU with `total` bytes, of which torch holds `reserved`."""
    run.path.mkdir()
    run.config.write_text(to_yaml(small_config(data)))
    program = FULL_GPU.format(total=total, reserved=reserved)
    command = [sys.executable, "-c", program, "--config", str(run.config), "--run-dir", str(run.path)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)


def test_a_full_gpu_is_reported_with_a_micro_batch_that_fits(jpegs: Path, tmp_path: Path) -> None:
    """In one line, with exit code 2: another try would fail the same way."""
    run, cfg = RunFolder(tmp_path / "run"), small_config(jpegs)
    memory = round(1.2 * step_bytes(cfg, 4, ranks=1))  # enough for micro-batches of 4, not of 8
    done = train_on_full_gpu(run, jpegs, total=memory, reserved=memory - 100)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "vit.train: micro_batch 8 does not fit into the memory of a GPU (0.0 GiB); "
        "use --micro_batch 4, which needs about 0.0 GiB, --activation_checkpointing true, which needs about 0.0 GiB, "
        "takes about a third more time and changes no bit, or GPUs with more memory\n"
    )
    event = run.last("failed")
    assert event is not None
    assert "micro_batch 8 does not fit" in event["error"]


def test_the_image_size_that_needs_most_memory_is_named() -> None:
    """With the place where its micro-batch stands: here the second row of `train_sizes`."""
    cfg = load_config(CONFIGS / "vit_b16.yaml")
    world = World(rank=0, size=4, local_size=4, device=torch.device("cuda"))
    cfg = dataclasses.replace(cfg, train_sizes=((0.5, 128, 192), (0.5, 224, 384)))
    message = _message(cfg, world, 20 * GIB)
    assert message.startswith("micro_batch 384 at 224 pixels does not fit into the memory of a GPU (20.0 GiB); use")
    assert "micro_batch 192 in row 2 of train_sizes, which needs about 13.7 GiB" in message
    cfg = dataclasses.replace(cfg, train_sizes=((0.5, 128, 384), (0.5, 224)))
    assert "use --micro_batch 192, which" in _message(cfg, world, 20 * GIB)


def test_memory_of_other_processes_is_not_blamed_on_the_config(jpegs: Path, tmp_path: Path) -> None:
    """They may be gone at the next try, or on another node."""
    done = train_on_full_gpu(RunFolder(tmp_path / "run"), jpegs, total=40 * GIB, reserved=20 * GIB)
    assert done.returncode == 1
    assert "OutOfMemoryError: CUDA out of memory." in done.stderr
    assert done.stderr.endswith("20.0 GiB of this GPU are used by other processes\n")


# Measured with torch 2.15, on one of 4 ranks, in GiB: the peak of what torch's allocator had given out.
@pytest.mark.parametrize(
    ("name", "settings", "measured"),
    [
        ("vit_b16", {}, 24.90),
        ("vit_b16", {"compile": False}, 26.39),
        ("vit_b16_torchvision", {}, 33.98),
        ("vit_b16_deit", {}, 6.31),
        ("vit_b16_deit3_192", {}, 14.18),
        ("vit_s16_deit", {}, 8.45),
        ("vit_s16_deit3_224", {}, 9.26),
        ("vit_ti16_deit", {}, 4.36),
        ("vit_b16", {"activation_checkpointing": True}, 9.30),
        ("vit_b16", {"activation_checkpointing": True, "compile": False}, 7.36),
        ("vit_b16_torchvision", {"activation_checkpointing": True}, 13.16),
        ("vit_s16_deit", {"activation_checkpointing": True}, 3.24),
    ],
)
def test_the_estimate_is_close_to_the_memory_of_each_recipe(
    name: str, settings: dict[str, object], measured: float
) -> None:
    """It only has to find a micro-batch that fits."""
    cfg = dataclasses.replace(load_config(CONFIGS / f"{name}.yaml"), **settings)
    assert step_bytes(cfg, cfg.micro_batch, ranks=4) / GIB == pytest.approx(measured, rel=0.1)


def test_muon_needs_one_moment_less_of_the_blocks_matrices() -> None:
    """ViT-B has 12 blocks with 7.1 million weights in matrices."""
    cfg = load_config(CONFIGS / "vit_b16.yaml")
    muon = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, optimizer="muon"))
    assert step_bytes(cfg, 384, 4) - step_bytes(muon, 384, 4) == 4 * 12 * 12 * 768**2


def test_the_suggested_micro_batch_is_one_that_the_run_accepts() -> None:
    """It divides the batch among the ranks, and is large enough for mixup."""
    cfg = load_config(CONFIGS / "vit_b16.yaml")  # 4 micro-batches of 384
    assert smaller_micro_batch(cfg, 4, 24 * GIB) == 192
    for ranks in (1, 2, 4):
        for memory in (8, 12, 22):
            smaller = smaller_micro_batch(cfg, ranks, memory * GIB)
            assert smaller is not None
            assert 1536 % (smaller * ranks) == 0
            assert step_bytes(cfg, smaller, ranks) < memory * GIB
    assert smaller_micro_batch(cfg, 4, 1 * GIB) is None
    pairs = dataclasses.replace(cfg, micro_batch=2, exact="samples")
    assert smaller_micro_batch(pairs, 4, 24 * GIB) is None, "mixup needs two images"
    alone = dataclasses.replace(pairs, augment=dataclasses.replace(cfg.augment, mixup=0.0, cutmix=0.0))
    assert smaller_micro_batch(alone, 4, 24 * GIB) == 1


def test_the_settings_that_are_suggested_need_less_memory_than_those_that_did_not_fit() -> None:
    """A smaller micro-batch, activation checkpointing, or both if neither is enough."""
    cfg = load_config(CONFIGS / "vit_b16.yaml")
    need = {micro: step_bytes(cfg, micro, 4) / USABLE for micro in (384, 192, 4)}
    less = dataclasses.replace(cfg, activation_checkpointing=True)
    (smaller, checkpointing) = memory_options(cfg, 4, int(need[384] * 0.99))
    assert smaller == f"--micro_batch 192, which needs about {need[192] * USABLE / GIB:.1f} GiB"
    assert checkpointing.startswith("--activation_checkpointing true, which needs about ")
    assert memory_options(cfg, 4, 40 * GIB)[0] == smaller, "if it did not fit, although the estimate says that it does"
    assert [option.split(",")[0] for option in memory_options(less, 4, int(need[4]))] == ["--micro_batch 64"]
    large = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, image_size=1024))
    (both,) = memory_options(large, 4, int(0.999 * step_bytes(large, 2, 4) / USABLE))
    assert both.startswith("--activation_checkpointing true --micro_batch 6, with about ")
    assert memory_options(cfg, 4, 1 * GIB) == []
