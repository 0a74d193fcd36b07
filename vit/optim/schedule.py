"""The learning-rate schedule, a pure function of the step."""

import math

from vit.config.schema import Config


def learning_rate(step: int, cfg: Config, samples: int) -> float:
    """The learning rate of one step: linear warmup from `warmup_lr` to `lr`, then cosine decay to `final_lr`.

    The last step has `final_lr`.  The cosine is SGDR's, https://arxiv.org/abs/1608.03983, without restarts.
    """
    total, warmup = cfg.steps(cfg.epochs, samples), cfg.steps(cfg.optim.warmup_epochs, samples)
    if step < warmup:
        return cfg.optim.warmup_lr + (cfg.optim.lr - cfg.optim.warmup_lr) * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return cfg.optim.final_lr + (cfg.optim.lr - cfg.optim.final_lr) * (1 + math.cos(math.pi * progress)) / 2
