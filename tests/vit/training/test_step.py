"""One optimizer step: what is compiled."""

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers.ranks import run_ranks
from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ModelConfig, OptimConfig
from vit.distributed.world import join_process_group
from vit.training.step import AugmentedBatch, StepRunner

# Each block is larger than DDP's first bucket of gradients, which has 1 MiB.
MODEL = ModelConfig(image_size=28, patch_size=7, width=192, depth=6, heads=3, mlp_dim=768, num_classes=10)


def graphs_of_a_step(cfg: Config, recomputed: bool = False) -> int:
    """The number of graphs that are compiled for forward and backward of this rank's micro-batches.

    With `recomputed`, a micro-batch of another rank is recomputed before.
    """
    graphs, compile_block = [], nn.Module.compile

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def compile_with_count(block: nn.Module, **options: bool) -> None:
        compile_block(block, backend=count, **options)

    with join_process_group(cfg) as world, mock.patch.object(nn.Module, "compile", compile_with_count):
        runner = StepRunner(RunSchedule(cfg, 64), world, TrainState.fresh(cfg, world.device))
        images, targets = torch.zeros(cfg.micro_batch, 3, 28, 28), torch.zeros(cfg.micro_batch, 10)
        batch = AugmentedBatch(
            [(images, targets)] * (cfg.micro_batches // world.size), np.arange(cfg.global_batch), None
        )
        if recomputed:
            runner.gradient(0, world.size - 1 - world.rank, images, targets)
        runner.forward_backward(0, batch)
    return len(graphs)


def test_all_groups_of_blocks_share_one_compiled_graph() -> None:
    """It is not cut where a bucket of DDP's ends, which would take more memory, launches and time to compile."""
    cfg = Config(device="cpu", compile=True, global_batch=4, micro_batch=2, model=MODEL)
    assert run_ranks(2, graphs_of_a_step, cfg) == [1, 1]


def test_a_recomputed_micro_batch_runs_the_compiled_graph_of_the_others() -> None:
    """Though not through DDP: nothing else is compiled, which takes long and might round differently."""
    cfg = Config(device="cpu", compile=True, global_batch=4, micro_batch=2, model=MODEL)
    assert run_ranks(2, graphs_of_a_step, cfg, True) == [1, 1]


def tensors_after_steps(cfg: Config) -> dict[str, Tensor]:
    """Weights, moments and EMA after two steps with clipping, of a run on this number of ranks."""
    with join_process_group(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(RunSchedule(cfg, 64), world, state)
        for step in range(2):
            random = torch.Generator().manual_seed(step)
            images = torch.randn(cfg.global_batch, 3, 28, 28, generator=random).split(cfg.micro_batch)
            targets = torch.rand(cfg.global_batch, 10, generator=random).split(cfg.micro_batch)
            mine = [(images[i], targets[i]) for i in world.my_micro_batches(cfg.micro_batches)]
            runner.forward_backward(step, AugmentedBatch(mine, np.arange(len(mine) * cfg.micro_batch), None))
            runner.update(step)
        return {name: tensor.clone() for name, tensor in state.tensors().items()}


def test_a_rank_without_ddp_ends_with_the_bits_of_several_ranks_with_it() -> None:
    """Clipping in the optimizer's step and the EMA included."""
    optim = OptimConfig(lr=0.01, warmup_epochs=0, clip_norm=0.01, ema_decay=0.9)
    cfg = Config(device="cpu", global_batch=8, micro_batch=2, model=replace(MODEL, drop_path=0.5), optim=optim)
    (expected,) = run_ranks(1, tensors_after_steps, cfg)
    for ranks in (2, 4):
        for found in run_ranks(ranks, tensors_after_steps, cfg):
            assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
