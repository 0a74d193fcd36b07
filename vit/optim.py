"""AdamW, the learning rate as a function of the step, and averaged weights."""

import math

import torch
from torch import Tensor, nn

from vit.config import Config, OptimConfig

# Vectors of the model that are stored as (1, N, D): no matrices either.
_TOKENS = ("cls_token", "positions")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices alone, not to norms, biases, the class token and positions."""
    return parameter.ndim >= 2 and name not in _TOKENS


def adamw(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) in one fused kernel."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": cfg.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)


def learning_rate(step: int, cfg: Config, samples: int) -> float:
    """The rate of one step: linear from 0 to the peak, then half a cosine down to `final_lr` at the last step.

    https://arxiv.org/abs/1608.03983, without restarts.
    """
    total, warmup = cfg.steps(cfg.epochs, samples), cfg.steps(cfg.optim.warmup_epochs, samples)
    if step < warmup:
        return cfg.optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return cfg.optim.final_lr + (cfg.optim.lr - cfg.optim.final_lr) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay · average + (1 - decay) · model, for all weights at once."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
