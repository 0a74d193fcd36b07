"""The EMA of the weights agrees with PyTorch, TensorFlow and its closed form."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.helpers.data_sets import small_config
from tests.helpers.models import SMALL
from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.optim.ema import ema_decay, update_ema


def test_the_ema_follows_torchvision_or_tensorflow_during_warmup() -> None:
    """`copy` is compared with PyTorch's AveragedModel as torchvision uses it, `ramp` with TensorFlow's formula."""
    cfg = Config(
        epochs=4, global_batch=8, micro_batch=8,
        optim=OptimConfig(ema_decay=0.9, ema_warmup="copy", warmup_epochs=2),
    )  # fmt: skip
    model = nn.Linear(2, 2)
    ema = copy.deepcopy(model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(12):  # three steps an epoch
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 2, generator=torch.Generator().manual_seed(step)))
        update_ema(ema, model, ema_decay(step, RunSchedule(cfg, 24)))
        theirs.update_parameters(model)
        if step < 5:  # torchvision resets the counter after each warmup step, so that the next step copies
            theirs.n_averaged.fill_(0)
        torch.testing.assert_close(ema.weight, theirs.module.weight)
        assert torch.equal(ema.weight, model.weight) == (step < 6)
    ramp = replace(cfg, optim=replace(cfg.optim, ema_warmup="ramp"))
    assert [ema_decay(n, RunSchedule(ramp, 24)) for n in (0, 1, 90, 1000)] == [1 / 10, 2 / 11, 0.9, 0.9]


def test_the_ema_is_the_exponential_average_over_all_steps() -> None:
    """The closed form: decay^n of the initial weights plus (1 - decay) decay^(n - i) of those of step i."""
    decay, count = 0.9, 7
    torch.manual_seed(0)
    model = VisionTransformer(SMALL)
    ema = copy.deepcopy(model).requires_grad_(False)
    expected = [decay**count * p.detach().double() for p in model.parameters()]
    for i in range(1, count + 1):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        update_ema(ema, model, decay)
        for total, p in zip(expected, model.parameters(), strict=True):
            total.add_(p.detach().double(), alpha=(1 - decay) * decay ** (count - i))
    for total, p in zip(expected, ema.parameters(), strict=True):
        torch.testing.assert_close(p.double(), total, rtol=1e-5, atol=1e-6)


def test_a_run_keeps_an_ema_only_if_configured(tmp_path: Path) -> None:
    """It starts as a copy of the weights, shares no memory with them, and has no gradients."""
    cfg = small_config(tmp_path)
    assert TrainState.fresh(cfg, torch.device("cpu")).ema is None
    state = TrainState.fresh(replace(cfg, optim=OptimConfig(ema_decay=0.99)), torch.device("cpu"))
    assert state.ema is not None
    for ema, p in zip(state.ema.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(ema, p)
        assert ema.data_ptr() != p.data_ptr()
        assert not ema.requires_grad
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in state.model.parameters()}
