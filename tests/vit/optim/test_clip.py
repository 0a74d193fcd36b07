"""Clipping in the optimizer's step gives the update of torch's own clipping."""

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.models import SMALL, randomized
from vit.config.sections import OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.optim.clip import clip_and_step
from vit.optim.optimizer import build_optimizer

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def after_a_step(kind: Literal["adamw", "lamb"], clip_norm: float, by_torch: bool, fp16: bool) -> tuple[Tensor, float]:
    """All weights after a step with random gradients, and the norm of the gradients."""
    torch.manual_seed(0)
    model = VisionTransformer(SMALL)
    randomized(model)
    optimizer = build_optimizer(model, OptimConfig(optimizer=kind, lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=fp16)
    scaler.scale(sum((p * torch.randn_like(p)).sum() for p in model.parameters())).backward()
    if by_torch:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm or float("inf"))
        scaler.step(optimizer)
    else:
        norm = clip_and_step(model, optimizer, scaler, clip_norm)
    assert not hasattr(optimizer, "grad_scale")
    return torch.cat([p.detach().flatten() for p in model.parameters()]), float(norm)


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "lamb"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.01, 1e6])
def test_an_update_is_that_of_torchs_clipping(kind: Literal["adamw", "lamb"], clip_norm: float, fp16: bool) -> None:
    """To the rounding if gradients are clipped; to the bit if not."""
    (weights, norm), (expected, same_norm) = (after_a_step(kind, clip_norm, x, fp16) for x in (False, True))
    assert norm == same_norm > 1
    if clip_norm == 0.01:
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(weights, expected)


def test_a_gradient_that_is_not_finite_shows_in_the_norm_and_in_the_weights() -> None:
    """So that the check of weights before a save finds the step, as after torch's own clipping."""
    model = VisionTransformer(SMALL)
    optimizer = build_optimizer(model, OptimConfig())
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    assert clip_and_step(model, optimizer, NO_SCALER, 1.0).isnan()
    assert all(p.isnan().all() for p in model.parameters())


class Passes(TorchDispatchMode):
    """Counts operations that scale all gradients."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += "_foreach_mul_" in str(function)
        return function(*args, **kwargs or {})


def test_adamw_scales_gradients_as_it_reads_them() -> None:
    """They are not multiplied in a pass of their own."""
    model = VisionTransformer(SMALL)
    optimizer = build_optimizer(model, OptimConfig())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with Passes() as passes:
        clip_and_step(model, optimizer, NO_SCALER, 1.0)
    assert passes.count == 0
