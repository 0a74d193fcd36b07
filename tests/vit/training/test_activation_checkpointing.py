"""Activation checkpointing: less memory, the same bits."""

import shutil
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.ranks import run_ranks
from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ModelConfig, OptimConfig
from vit.distributed.world import join_process_group
from vit.training.step import AugmentedBatch, StepRunner

# All kinds of dropout, whose draws must be the same when a block is computed again.
MODEL = ModelConfig(
    image_size=28, patch_size=7, width=32, depth=2, heads=2, mlp_dim=64, num_classes=10,
    dropout=0.1, attention_dropout=0.1, drop_path=0.5, drop_path_rule="uniform", layer_scale=0.1,
)  # fmt: skip
CONFIG = Config(device="cpu", global_batch=8, micro_batch=4, model=MODEL, optim=OptimConfig(ema_decay=0.9))


def random_batch(cfg: Config, step: int) -> AugmentedBatch:
    random = torch.Generator().manual_seed(step)
    images = torch.randn(cfg.global_batch, 3, 28, 28, generator=random).split(cfg.micro_batch)
    targets = torch.rand(cfg.global_batch, 10, generator=random).split(cfg.micro_batch)
    return AugmentedBatch(list(zip(images, targets, strict=True)), np.arange(cfg.global_batch), None)


def train(cfg: Config) -> tuple[dict[str, Tensor], int]:
    """All tensors of the state after two steps, and the bytes that autograd has kept for the first backward pass."""
    kept: dict[int, int] = {}  # of each storage

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with join_process_group(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(RunSchedule(cfg, 64), world, state)
        state.model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = state.model(random_batch(cfg, 0).micro_batches[0][0])
        del output
        for step in range(2):
            runner.forward_backward(step, random_batch(cfg, step))
            runner.update(step)
        assert runner.check_finite() is not None
        return state.tensors(), sum(kept.values())


def train_with_and_without(cfg: Config) -> tuple[int, int, list[str]]:
    """The bytes that are kept with and without activation checkpointing, and the names of tensors that then differ."""
    with_it, kept = train(replace(cfg, activation_checkpointing=True))
    without, all_kept = train(cfg)
    return kept, all_kept, [name for name in without if not torch.equal(with_it[name], without[name])]


@pytest.mark.parametrize(("compiled", "precision"), [(False, "float32"), (False, "bf16"), (True, "bf16")])
def test_activation_checkpointing_keeps_less_and_changes_no_bit(
    compiled: bool, precision: Literal["float32", "bf16"]
) -> None:
    """Of weights, optimizer and EMA, after two steps with dropout and drop path."""
    if compiled and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    cfg = replace(CONFIG, compile=compiled, precision=precision)
    ((kept, all_kept, differing),) = run_ranks(1, train_with_and_without, cfg, timeout=300)
    assert differing == []
    assert kept < all_kept / 2
