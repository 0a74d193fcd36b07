"""All tensors of a step are on the same device: with fake tensors on `cuda`, which have a device but no memory.

Needs no GPU, and no null GPU either.  The backward pass does need one; `test_training.py` runs it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers.gpu_runs import DISTINCT_RECIPES, SMALL
from tests.helpers.paths import CONFIGS
from vit.augment import pipeline
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.data.loader import Batch
from vit.distributed.world import World
from vit.model.vision_transformer import VisionTransformer
from vit.optim.optimizer import build_optimizer
from vit.training import step as training_step
from vit.training.step import StepRunner

GPU = torch.device("cuda", 0)
WORLD = World(rank=0, size=1, local_size=1, device=GPU)
STEPS = 2


class FakeGradients:
    """In place of MicroBatchGradients: autograd and DDP use a real GPU."""

    def __init__(self, model: nn.Module, world: World, exact: str, ready: object) -> None:
        self.model = model

    @contextmanager
    def micro_batch(self, j: int, count: int) -> Iterator[None]:
        """The gradients appear after the forward pass."""
        yield
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)


class CpuGenerator(torch.Generator):
    """A generator on the CPU, whatever the device; nothing is drawn from it with `erasing_fill: mean`."""

    def __new__(cls, device: torch.device) -> "CpuGenerator":
        return super().__new__(cls)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """A mode in which tensors may be on `cuda`."""
    monkeypatch.setattr(training_step, "MicroBatchGradients", FakeGradients)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    # These ask for a real GPU.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch, "Generator", CpuGenerator)
    pipeline.channel_levels.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode
    pipeline.channel_levels.cache_clear()  # it has cached fake tensors


def fake_model(cfg: Config, mode: FakeTensorMode) -> VisionTransformer:
    """A model with fake parameters on the GPU; Module.to cannot convert to them."""

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty_like(tensor, device=GPU)

    with torch._C._DisableTorchDispatch():
        model = VisionTransformer(cfg.model)
    return model._apply(convert)


def fake_batch(cfg: Config) -> Batch:
    """Images and labels of a step on the GPU."""
    shape = (cfg.global_batch, cfg.model.image_size, cfg.model.image_size, 3)
    images = torch.zeros(shape, dtype=torch.uint8, device=GPU)
    labels = torch.zeros(cfg.global_batch, dtype=torch.int64, device=GPU)
    return Batch(images, labels, np.zeros(cfg.global_batch, np.int64))


def take_steps(recipe: str, mode: FakeTensorMode) -> StepRunner:
    """Runs steps of a small model."""
    cfg = load_config(CONFIGS / f"{recipe}.yaml", *SMALL, "--compile", "false", "--augment.erasing_fill", "mean")
    model = fake_model(cfg, mode)
    ema = fake_model(cfg, mode) if cfg.optim.ema_decay else None
    state = TrainState(model, build_optimizer(model, cfg.optim), ema, torch.amp.GradScaler("cuda", enabled=False))
    runner = StepRunner(RunSchedule(cfg, 1000), WORLD, state)
    for step in range(STEPS):
        batch = training_step._augment_batch(cfg, WORLD, step, fake_batch(cfg), None)
        runner.forward_backward(step, batch)
        runner.update(step)
    return runner


@pytest.mark.parametrize("recipe", DISTINCT_RECIPES)
def test_a_step_mixes_no_devices(recipe: str, fake_gpu: FakeTensorMode) -> None:
    """Augmentation, model, loss, clipping, optimizer and EMA."""
    runner = take_steps(recipe, fake_gpu)
    assert {tensor.device for tensor in [*runner.state.tensors().values(), runner._losses]} == {GPU}


def test_a_tensor_on_the_wrong_device_is_found(fake_gpu: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the targets, which stay on the CPU."""

    def on_cpu(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
        return torch.full((len(labels), num_classes), smoothing / num_classes)

    monkeypatch.setattr(pipeline, "smooth_targets", on_cpu)
    with pytest.raises(RuntimeError, match=r"two (different )?devices"):
        take_steps("vit_b16", fake_gpu)
