"""The optimizer is AdamW as published, its learning rate is torch's own schedule, and decay is for matrices alone."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import small_config
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from vit.config import Config, ModelConfig, OptimConfig
from vit.model import VisionTransformer
from vit.optim import adamw, decays, learning_rate, update_average
from vit.state import State

SMALL = ModelConfig(image_size=28, patch_size=7, width=16, depth=2, heads=2, mlp_dim=24, num_classes=5)


def schedule(samples: int, **changes: float) -> tuple[Config, list[float]]:
    cfg = Config(epochs=10, global_batch=8, micro_batch=8, optim=OptimConfig(**changes))
    return cfg, [learning_rate(step, cfg, samples) for step in range(cfg.steps(10, samples))]


@pytest.mark.parametrize("samples", [40, 43])
@pytest.mark.parametrize("final_lr", [0.0, 1e-4])
def test_every_steps_learning_rate_is_that_of_torchs_schedulers(samples: int, final_lr: float) -> None:
    """A linear warm-up, then a cosine, as LinearLR and CosineAnnealingLR make them one step after the other."""
    cfg, ours = schedule(samples, lr=3e-3, warmup_epochs=2, final_lr=final_lr)
    total, warmup = len(ours), cfg.steps(2, samples)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
    linear = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=total - 1 - warmup, eta_min=final_lr)
    reference = SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
    for step, rate in enumerate(ours):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15), f"step {step} of {total}"
        optimizer.step()
        reference.step()


def test_the_learning_rate_starts_small_reaches_its_peak_and_ends_where_it_should() -> None:
    """The published recipe on ImageNet: 1,281,167 images, 30 of 300 epochs of warm-up, 0.01, down to 0."""
    cfg = Config(epochs=300, global_batch=1536, optim=OptimConfig(lr=0.01, warmup_epochs=30))
    samples = 1_281_167
    total, warmup = math.ceil(300 * samples / 1536), math.ceil(30 * samples / 1536)
    assert learning_rate(0, cfg, samples) == pytest.approx(0.01 / warmup)
    assert learning_rate(warmup // 2 - 1, cfg, samples) == pytest.approx(0.005, rel=1e-3)
    assert learning_rate(warmup - 1, cfg, samples) == learning_rate(warmup, cfg, samples) == 0.01
    assert learning_rate((warmup + total) // 2, cfg, samples) == pytest.approx(0.005, rel=1e-3)
    assert learning_rate(total - 1, cfg, samples) == 0
    rates = [learning_rate(step, cfg, samples) for step in range(0, total, 100)]
    assert rates == sorted(rates[: warmup // 100 + 1]) + sorted(rates[warmup // 100 + 1 :], reverse=True)


@pytest.mark.parametrize("samples", [8, 40])
def test_without_warm_up_the_first_step_has_the_peak(samples: int) -> None:
    """Also in a run of few steps, which still ends at the last rate."""
    _, rates = schedule(samples, lr=1e-3, final_lr=1e-5)
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx(1e-5)


LINEAR = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
DECAYED = {
    *(f"blocks.{i}.{layer}.weight" for i in range(2) for layer in LINEAR),
    *("patches.proj.weight", "head.weight"),
}
NOT_DECAYED = {
    *(f"blocks.{i}.{layer}.bias" for i in range(2) for layer in LINEAR),
    *(f"blocks.{i}.{norm}.{what}" for i in range(2) for norm in ("norm1", "norm2") for what in ("weight", "bias")),
    *("patches.proj.bias", "norm.weight", "norm.bias", "head.bias"),
}


@pytest.mark.parametrize(
    ("pool", "positions", "tokens"),
    [
        ("cls", "learned", {"cls_token", "positions"}),
        ("cls", "sincos2d", {"cls_token"}),
        ("mean", "learned", {"positions"}),
        ("mean", "sincos2d", set()),
    ],
)
def test_weight_decay_is_for_matrices_alone(
    pool: Literal["cls", "mean"], positions: Literal["learned", "sincos2d"], tokens: set[str]
) -> None:
    """Of a whole model, by name: every weight of a linear map decays; no norm, bias, class token or position does."""
    model = VisionTransformer(replace(SMALL, pool=pool, positions=positions))
    optimizer = adamw(model, OptimConfig(weight_decay=0.3))
    names = {p: name for name, p in model.named_parameters()}
    found: dict[float, set[str]] = {0.3: set(), 0.0: set()}
    for group in optimizer.param_groups:
        found[group["weight_decay"]] |= {names[p] for p in group["params"]}
    assert found == {0.3: DECAYED, 0.0: NOT_DECAYED | tokens}
    assert all(decays(name, p) == (name in DECAYED) for name, p in model.named_parameters())


def test_decay_acts_on_matrices_and_leaves_the_rest_as_it_is() -> None:
    """Gradients of zero: matrices shrink by lr times weight_decay, all else keeps its bits."""
    torch.manual_seed(0)
    model = VisionTransformer(SMALL)
    nn.init.normal_(model.head.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        if name in DECAYED:
            torch.testing.assert_close(p.detach(), before[name] * 0.95)
        else:
            assert torch.equal(p, before[name]), name


def steps(optimizer: torch.optim.Optimizer, model: nn.Module, count: int) -> list[Tensor]:
    """The weights after `count` steps of given gradients, whose learning rate changes as a schedule changes it."""
    random = torch.Generator().manual_seed(1)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=random) * 10 ** (step % 3 - 1)
        optimizer.step()
    return list(model.parameters())


def test_the_fused_kernel_is_torchs_plain_adamw() -> None:
    """Ten steps with the config's betas, eps and decay: the weights of `torch.optim.AdamW` in its plainest form."""
    torch.manual_seed(0)
    cfg = OptimConfig(weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-3)
    model = VisionTransformer(SMALL)
    reference = copy.deepcopy(model)
    groups = [
        {"params": [p for n, p in reference.named_parameters() if n in DECAYED], "weight_decay": 0.1},
        {"params": [p for n, p in reference.named_parameters() if n not in DECAYED], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3, fused=False, foreach=False)
    fused = adamw(model, cfg)
    assert all(group["fused"] for group in fused.param_groups)
    for ours, theirs in zip(steps(fused, model, 10), steps(plain, reference, 10), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_the_exponential_average_of_all_steps() -> None:
    """Against the closed form: decay^n of the first weights, (1 - decay) decay^(n - i) of those of step i."""
    decay, count = 0.9, 7
    torch.manual_seed(0)
    model = VisionTransformer(SMALL)
    average = copy.deepcopy(model).requires_grad_(False)
    expected = [decay**count * p.detach().double() for p in model.parameters()]
    for i in range(1, count + 1):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        update_average(average, model, decay)
        for total, p in zip(expected, model.parameters(), strict=True):
            total.add_(p.detach().double(), alpha=(1 - decay) * decay ** (count - i))
    for total, p in zip(expected, average.parameters(), strict=True):
        torch.testing.assert_close(p.double(), total, rtol=1e-5, atol=1e-6)


def test_a_run_keeps_an_average_only_if_it_is_asked_to(tmp_path: Path) -> None:
    """It starts as the weights, is no copy of them that shares memory, and no gradient reaches it."""
    cfg = small_config(tmp_path)
    assert State.fresh(cfg, torch.device("cpu")).average is None
    state = State.fresh(replace(cfg, optim=OptimConfig(ema_decay=0.99)), torch.device("cpu"))
    assert state.average is not None
    for averaged, p in zip(state.average.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(averaged, p)
        assert averaged.data_ptr() != p.data_ptr()
        assert not averaged.requires_grad
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in state.model.parameters()}
