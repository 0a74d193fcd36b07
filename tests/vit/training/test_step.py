"""One optimizer step: what is compiled."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers.ranks import run_ranks
from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.distributed.world import join_process_group
from vit.training.step import AugmentedBatch, StepRunner

# Each block is larger than DDP's first bucket of gradients, which has 1 MiB.
MODEL = ModelConfig(image_size=28, patch_size=7, width=192, depth=6, heads=3, mlp_dim=768, num_classes=10)


def graphs_of_a_step(cfg: Config) -> int:
    """The number of graphs that are compiled for forward and backward of this rank's micro-batches."""
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
        runner.forward_backward(0, batch)
    return len(graphs)


def test_all_groups_of_blocks_share_one_compiled_graph() -> None:
    """It is not cut where a bucket of DDP's ends, which would take more memory, launches and time to compile."""
    cfg = Config(device="cpu", compile=True, global_batch=4, micro_batch=2, model=MODEL)
    assert run_ranks(2, graphs_of_a_step, cfg) == [1, 1]
