"""With `cuda_graphs`, the host launches each micro-batch's pass once, and captures it once for each size of images."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import null_gpu_counts
from tests.helpers.gpu_runs import ANSWERS, SMALL, run_options, train_and_count
from tests.helpers.null_gpu_counts import Counts
from tests.helpers.null_gpu_ranks import NullGpu
from tests.helpers.paths import CONFIGS
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.distributed.world import join_process_group
from vit.training.step import StepRunner

SELDOM = ("--log.eval_every_epochs", "1000", "--checkpoint.every_minutes", "1000", "--log.every_steps", "1000")
DROPS = ("--model.drop_path", "0.2", "--model.dropout", "0.1", "--model.attention_dropout", "0.1")
FIRST, LAST = 12, 16
MICRO_BATCHES = 4


def graphs(counts: Counts) -> list[tuple[int, int]]:
    """The nodes of each graph, and how often it was launched."""
    names = [(name.split(), times) for (_, name), times in counts.kernels.items()]
    return [(int(words[3]), times) for words, times in names if words[0] == "graph"]


def graph_and_pass(options: tuple[str, ...]) -> tuple[Counts, Counts]:
    """What is captured and launched of one micro-batch, and what the same pass launches without a graph."""
    cfg = load_config(CONFIGS / "vit_b16_deit.yaml", *SMALL, *options, "--cuda_graphs", "true")
    with join_process_group(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(RunSchedule(cfg, 64), world, state)
        images = torch.zeros(cfg.micro_batch, 3, 32, 32, device=world.device)
        targets = torch.zeros(cfg.micro_batch, cfg.model.num_classes, device=world.device)
        loss: Any = functools.partial(runner._share_of_loss, cfg.micro_batches)
        for _ in range(3):
            null_gpu_counts.reset()
            torch.autograd.grad(loss(state.model.train(), images, targets)[1], list(state.model.parameters()))
        alone = null_gpu_counts.read()
        torch._dynamo.config.error_on_recompile = True  # type: ignore[attr-defined]
        assert runner.graphs is not None
        null_gpu_counts.reset()
        runner.graphs.run(loss, images, targets)
        return null_gpu_counts.read(), alone


@pytest.mark.parametrize(("compiled", "precision"), [("false", "bf16"), ("false", "fp16"), ("true", "bf16")])
def test_a_graph_has_all_kernels_of_a_pass(compiled: str, precision: str, null_gpu: NullGpu) -> None:
    """And nothing is compiled or launched beside it, except that torch writes the seed of random draws."""
    options = ("--compile", compiled, "--precision", precision, *DROPS)
    captured, alone = null_gpu.run(graph_and_pass, options, timeout=200)[0]
    moved = sum(times for event, times in alone.events.items() if event.startswith(("copy", "memset")))
    assert graphs(captured) == [(alone.launches + moved, 1)]
    assert captured.launches - 1 <= 6  # fills of seed and offset, the inputs and the loss


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize(("recipe", "precision"), [("vit_b16_deit", "bf16"), ("vit_b16_torchvision", "fp16")])
def test_a_step_launches_one_graph_for_each_micro_batch(
    recipe: str, precision: str, gpus: int, null_gpu: NullGpu, jpegs: Path, tmp_path: Path
) -> None:
    """Without waiting for the GPU, and without waiting for its own capture, which the first steps did."""
    options = run_options(recipe, False, jpegs, tmp_path, "--epochs", "9", "--precision", precision, *SELDOM)
    without, with_graphs = (
        null_gpu.run(
            train_and_count, [*options, "--cuda_graphs", value, "--run-dir", str(tmp_path / value)], FIRST, LAST,
            ranks=gpus, answers=ANSWERS, timeout=200,
        )[0]
        for value in ("false", "true")
    )  # fmt: skip
    assert [times for _, times in graphs(with_graphs)] == [(LAST - FIRST) * MICRO_BATCHES // gpus]
    assert with_graphs.launches < 0.6 * without.launches
    assert not [wait for wait in with_graphs.synchronizations if not wait.thread.startswith("decode")]


def test_each_size_of_images_has_a_graph_of_its_own(null_gpu: NullGpu, jpegs: Path, tmp_path: Path) -> None:
    """Captured in the second step that has it, while other threads decode."""
    sizes = ("--train_sizes", "[[0.5, 16], [0.5, 32, 16]]")
    options = run_options("vit_b16_deit", False, jpegs, tmp_path, "--epochs", "8", *sizes, *SELDOM)
    counts = null_gpu.run(
        train_and_count, [*options, "--cuda_graphs", "true"], 6, 12, answers=ANSWERS, timeout=200,
    )[0]  # fmt: skip
    small, large = sorted(graphs(counts), key=lambda graph: graph[1], reverse=True)
    assert small[1] == 2 * MICRO_BATCHES  # steps 6 and 7
    assert large[1] == 3 * MICRO_BATCHES // 2  # steps 9 to 11; step 8 is run without a graph
    assert counts.events["capture of a graph"] == 1
