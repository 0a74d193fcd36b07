"""The learning-rate schedule, a pure function of the step."""

import math

from vit.config.run_schedule import RunSchedule


def learning_rate(step: int, schedule: RunSchedule) -> float:
    """The learning rate of one step: linear warmup from `warmup_lr` to `lr`, then cosine decay to `final_lr`.

    The last step has `final_lr`.  The cosine is SGDR's, https://arxiv.org/abs/1608.03983, without restarts.  It follows
    the work that is done, in steps at `model.image_size`, which is the step itself unless epochs count pixels.
    """
    cfg, optim, done = schedule.cfg, schedule.cfg.optim, schedule.work(step)
    total, warmup = (cfg.steps(epochs, schedule.samples) for epochs in (cfg.epochs, optim.warmup_epochs))
    if done < warmup:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * min(1.0, (done + 1) / warmup)
    progress = min(1.0, (done - warmup) / max(1, total - 1 - warmup))
    return optim.final_lr + (optim.lr - optim.final_lr) * (1 + math.cos(math.pi * progress)) / 2
