"""The learning-rate schedule agrees with PyTorch's and timm's schedulers at every step."""

import math

import pytest
import timm.scheduler
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import OptimConfig
from vit.optim.schedule import learning_rate


def rates_of(samples: int, **changes: float) -> tuple[Config, list[float]]:
    cfg = Config(epochs=10, global_batch=8, micro_batch=8, optim=OptimConfig(**changes))
    schedule = RunSchedule(cfg, samples)
    return cfg, [learning_rate(step, schedule) for step in range(schedule.total_steps)]


@pytest.mark.parametrize("samples", [40, 43])
@pytest.mark.parametrize("final_lr", [0.0, 1e-4])
def test_the_learning_rate_of_every_step_is_that_of_pytorchs_schedulers(samples: int, final_lr: float) -> None:
    """Linear warmup, then cosine decay, as LinearLR followed by CosineAnnealingLR."""
    cfg, ours = rates_of(samples, lr=3e-3, warmup_epochs=2, final_lr=final_lr)
    total, warmup = len(ours), cfg.steps(2, samples)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    linear = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=total - 1 - warmup, eta_min=final_lr)
    reference = SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
    for step, rate in enumerate(ours):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15), f"step {step} of {total}"
        optimizer.step()
        reference.step()


def test_the_published_imagenet_schedule_warms_up_to_its_peak_and_ends_at_zero() -> None:
    """1,281,167 images, 30 of 300 epochs of warmup to 0.01, then decay to 0."""
    samples = 1_281_167
    schedule = RunSchedule(Config(global_batch=1536, optim=OptimConfig(lr=0.01, warmup_epochs=30)), samples)
    total, warmup = math.ceil(300 * samples / 1536), math.ceil(30 * samples / 1536)
    assert learning_rate(0, schedule) == pytest.approx(0.01 / warmup)
    assert learning_rate(warmup // 2 - 1, schedule) == pytest.approx(0.005, rel=1e-3)
    assert learning_rate(warmup - 1, schedule) == learning_rate(warmup, schedule) == 0.01
    assert learning_rate((warmup + total) // 2, schedule) == pytest.approx(0.005, rel=1e-3)
    assert learning_rate(total - 1, schedule) == 0
    rates = [learning_rate(step, schedule) for step in range(0, total, 100)]
    assert rates == sorted(rates[: warmup // 100 + 1]) + sorted(rates[warmup // 100 + 1 :], reverse=True)


@pytest.mark.parametrize("samples", [40, 43])
def test_warmup_from_a_nonzero_rate_is_that_of_timm(samples: int) -> None:
    """As in DeiT, which starts at 1e-6.  Our step i has the rate that timm sets after step i."""
    cfg, ours = rates_of(samples, lr=3e-3, warmup_epochs=2, warmup_lr=1e-4)
    warmup = cfg.steps(2, samples)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    reference = timm.scheduler.CosineLRScheduler(
        optimizer, len(ours), warmup_t=warmup, warmup_lr_init=1e-4, warmup_prefix=True, t_in_epochs=False
    )
    for step in range(warmup):
        reference.step_update(step + 1)
        assert ours[step] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
    assert ours[0] == pytest.approx(1e-4 + 2.9e-3 / warmup)


@pytest.mark.parametrize("samples", [8, 40])
def test_without_warmup_the_first_step_has_the_peak_learning_rate(samples: int) -> None:
    """Also in a run of few steps, which still ends at `final_lr`."""
    _, rates = rates_of(samples, lr=1e-3, final_lr=1e-5)
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx(1e-5)
