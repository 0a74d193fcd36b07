"""The exponential moving average (EMA) of the weights."""

import torch
from torch import nn

from vit.config.run_schedule import RunSchedule


def ema_decay(step: int, schedule: RunSchedule) -> float:
    """The decay of the EMA at one step, by `optim.ema_warmup`.

    `copy` keeps the EMA equal to the weights during the learning-rate warmup, as torchvision's references do.
    `ramp` starts with a small decay, as TensorFlow's ExponentialMovingAverage does with `num_updates`.
    """
    optim = schedule.cfg.optim
    if optim.ema_warmup == "copy" and step < schedule.steps(optim.warmup_epochs):
        return 0.0
    ramp = (1 + step) / (10 + step) if optim.ema_warmup == "ramp" else 1.0
    return min(optim.ema_decay, ramp)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay · ema + (1 - decay) · model, for all weights in one fused operation."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1.0 - decay)
