"""Compiled blocks at several image sizes: static graphs, compiled ahead, without a trace in the run."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.ranks import run_ranks
from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ModelConfig, OptimConfig
from vit.distributed.world import join_process_group
from vit.model.vision_transformer import VisionTransformer
from vit.training.compiling import GRAPHS_PER_SHAPE, compile_ahead, compile_model, grouped, remaining_sizes
from vit.training.step import AugmentedBatch, StepRunner

MODEL = ModelConfig(
    image_size=28, patch_size=7, width=32, depth=2, heads=2, mlp_dim=64, num_classes=10, drop_path=0.5, dropout=0.1
)
CONFIG = Config(
    device="cpu", compile=True, global_batch=8, micro_batch=4, model=MODEL, optim=OptimConfig(ema_decay=0.9)
)
SIDES = (14, 21, 28)
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)


def sized(cfg: Config, side: int) -> Config:
    return replace(cfg, model=replace(cfg.model, image_size=side))


def random_batch(cfg: Config, side: int) -> AugmentedBatch:
    random = torch.Generator().manual_seed(side)
    images = torch.randn(cfg.global_batch, 3, side, side, generator=random).split(cfg.micro_batch)
    targets = torch.rand(cfg.global_batch, 10, generator=random).split(cfg.micro_batch)
    return AugmentedBatch(list(zip(images, targets, strict=True)), np.arange(cfg.global_batch), None)


@contextmanager
def recorded_graphs() -> Iterator[list[tuple[str, list[Any]]]]:
    """The graphs that are compiled in this context: code, and sizes of all inputs.  They are run without compiling."""
    graphs, compile_block = [], nn.Module.compile

    def record(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., object]:
        sizes = [list(value.shape) if isinstance(value, Tensor) else value for value in inputs]
        graphs.append((graph.code, sizes))
        return graph.forward

    def compile_recorded(block: nn.Module, **options: bool) -> None:
        compile_block(block, backend=record, **options)

    with mock.patch.object(nn.Module, "compile", compile_recorded):
        yield graphs


def graphs_of_steps(cfg: Config, sides: list[int]) -> list[tuple[str, list[Any]]]:
    """The graphs that are compiled in a step at the last of these sides, after steps at the others."""
    with join_process_group(cfg) as world, recorded_graphs() as graphs:
        runner = StepRunner(RunSchedule(cfg, 64), world, TrainState.fresh(cfg, world.device))
        for side in sides:
            graphs.clear()
            runner.forward_backward(0, random_batch(cfg, side))
    return list(graphs)


def test_a_size_has_the_same_graphs_whatever_sizes_came_before() -> None:
    """A run that is resumed at a size computes the bits of one that has gone through the smaller ones.

    torch's default compiles the second size that it sees for any size.
    """
    (alone,) = run_ranks(1, graphs_of_steps, CONFIG, [28])
    (after_others,) = run_ranks(1, graphs_of_steps, CONFIG, [14, 21, 28])
    assert len(alone) == 1, "both blocks are one group"
    assert alone == after_others
    shapes = [size for _, sizes in alone for size in sizes]
    assert [4, 17, 32] in shapes
    assert all(isinstance(length, int) for shape in shapes for length in shape)


@pytest.mark.parametrize(("depth", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 5), (12, 4), (24, 8), (32, 16)])
def test_blocks_are_compiled_in_groups_of_equal_size(depth: int, groups: int) -> None:
    """In their order, under their own names; a group of another size would be another graph."""
    model = VisionTransformer(replace(MODEL, depth=depth))
    names = list(model.state_dict())
    model.groups = grouped(model.blocks)
    assert len(model.groups) == groups and len({len(group) for group in model.groups}) == 1
    assert [block for group in model.groups for block in group] == list(model.blocks)
    assert list(model.state_dict()) == names


def test_all_groups_share_one_graph_but_for_the_block_that_drops_no_path() -> None:
    """The first group contains it; the three others are the same."""
    four_groups = replace(CONFIG, model=replace(MODEL, depth=12))
    assert [len(graphs) for graphs in run_ranks(1, graphs_of_steps, four_groups, [28])] == [2]
    no_drop_path = replace(CONFIG, model=replace(MODEL, depth=12, drop_path=0.0))
    assert [len(graphs) for graphs in run_ranks(1, graphs_of_steps, no_drop_path, [28])] == [1]


def graphs_with_checkpointing(cfg: Config) -> int:
    return len(graphs_of_steps(replace(cfg, activation_checkpointing=True), [28]))


def test_activation_checkpointing_needs_no_other_graphs() -> None:
    """The forward pass that is computed again is the compiled one."""
    assert run_ranks(1, graphs_with_checkpointing, CONFIG) == [1]


def pass_the_limit(cfg: Config) -> str:
    """Names the error of a step at a second size, although one graph of each block is all that is allowed."""
    with join_process_group(cfg) as world, recorded_graphs():
        runner = StepRunner(RunSchedule(cfg, 64), world, TrainState.fresh(cfg, world.device))
        torch._dynamo.config.recompile_limit = 1
        runner.forward_backward(0, random_batch(cfg, 14))
        try:
            runner.forward_backward(1, random_batch(cfg, 28))
        except Exception as error:
            return type(error).__name__
    return "none"


def test_more_graphs_than_expected_are_an_error() -> None:
    """torch would continue without compiling, slower and in other bits, and only log it."""
    assert run_ranks(1, pass_the_limit, CONFIG) == ["FailOnRecompileLimitHit"]


def limit_for(shapes: int) -> int:
    compile_model([], shapes)
    limit: int = torch._dynamo.config.recompile_limit
    return limit


def test_the_limit_of_graphs_grows_with_the_sizes_of_a_run() -> None:
    """Never below torch's own."""
    assert run_ranks(1, limit_for, 20) == [20 * GRAPHS_PER_SHAPE]
    assert run_ranks(1, limit_for, 1) == [8]


def steps_at_all_sides(cfg: Config, ahead: bool) -> tuple[dict[str, Tensor], list[float | None], int, int]:
    """All tensors after a step at each side, the losses, and how many graphs were compiled ahead and in the steps."""
    counters = torch._dynamo.utils.counters["stats"]
    with join_process_group(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(RunSchedule(cfg, 64), world, state)
        losses: list[float | None] = []
        for step, side in enumerate((SIDES[0], *SIDES)):
            if step == 1 and ahead:  # after a step: DDP's reducer is ready for the next one
                before, random = counters["unique_graphs"], torch.get_rng_state()
                compile_ahead(state.model, [sized(cfg, side) for side in SIDES], runner.autocast)
                assert torch.equal(torch.get_rng_state(), random)
                compiled_ahead = counters["unique_graphs"] - before
                before = counters["unique_graphs"]
            runner.forward_backward(step, random_batch(cfg, side))
            runner.update(step)
            checked = runner.check_finite()
            losses.append(checked[0] if checked else None)
        if not ahead:
            return state.tensors(), losses, 0, 0
        return state.tensors(), losses, compiled_ahead, counters["unique_graphs"] - before


@needs_compiler
def test_compiling_ahead_changes_no_bit_and_leaves_nothing_to_compile_at_a_border() -> None:
    """With dropout, on one rank; weights, optimizer, EMA and losses of the steps that follow."""
    cfg = replace(CONFIG, model=replace(MODEL, drop_path_rule="uniform"))
    ((expected, losses, *_),) = run_ranks(1, steps_at_all_sides, cfg, False, timeout=400)
    ((tensors, losses_after, ahead, in_steps),) = run_ranks(1, steps_at_all_sides, cfg, True, timeout=400)
    assert (ahead, in_steps) == (len(SIDES) - 1, 0)
    assert losses_after == losses
    assert [name for name in expected if not torch.equal(expected[name], tensors[name])] == []


def sides_compiled_ahead(cfg: Config, go_on: list[bool]) -> tuple[list[int], bool, bool]:
    """The tokens in the graphs that are compiled ahead while `go_on`; whether all are; whether there are gradients."""
    with join_process_group(cfg) as world, recorded_graphs() as graphs:
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(RunSchedule(cfg, 64), world, state)
        state.model.eval()
        done = compile_ahead(state.model, [sized(cfg, side) for side in (28, 14)], runner.autocast, go_on.pop)
        assert not state.model.training
        tokens = [shape[1] for _, sizes in graphs for shape in sizes if len(shape) == 3]
        return list(dict.fromkeys(tokens)), done, any(p.grad is not None for p in state.model.parameters())


def test_a_stop_signal_is_looked_at_before_each_size_that_is_compiled() -> None:
    """Compiling takes long."""
    assert run_ranks(1, sides_compiled_ahead, CONFIG, [True, True]) == [([17, 5], True, False)]
    assert run_ranks(1, sides_compiled_ahead, CONFIG, [False, True]) == [([17], False, False)]


def test_the_sizes_of_the_remaining_stages_are_compiled_once_each_the_largest_first() -> None:
    """The one that needs most memory: if a GPU has too little of it, the run ends before its first step."""
    rows = ((0.25, 14, 8), (0.25, 28, 4), (0.25, 21, 8), (0.125, 14, 8), (0.125, 28, 4))
    schedule = RunSchedule(replace(CONFIG, epochs=4, train_sizes=rows), samples=80)
    sizes = {step: [cfg.model.image_size for cfg in remaining_sizes(schedule, step)] for step in (0, 10, 20, 35, 39)}
    assert sizes == {0: [21, 28, 14], 10: [21, 28, 14], 20: [21, 28, 14], 35: [28], 39: [28]}
