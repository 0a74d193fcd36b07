"""LAMB: AdamW with the update of each weight matrix scaled to the norm of the matrix (the trust ratio).

You et al. 2019, "Large Batch Optimization for Deep Learning", https://arxiv.org/abs/1904.00962, algorithm 2.  As in
NVIDIA's FusedLAMB, which DeiT-III was trained with, the trust ratio applies only to weights with weight decay: norms,
biases, positions and the class token get Adam's update.  FusedLAMB also clips the gradient to a norm of 1; here
`optim.clip_norm` does that, for all optimizers.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB.  Its state has AdamW's names: `step`, `exp_avg`, `exp_avg_sq`.  `step()` never waits for the GPU."""

    # torch's GradScaler then leaves it to `step()` to skip an update, and does not wait for the GPU to decide about it.
    _step_supports_amp_scaling = True

    def __init__(self, params: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all weights that have a gradient; none if GradScaler found a gradient that is not finite."""
        assert closure is None
        assert getattr(self, "grad_scale", None) is None, "the gradients are not unscaled"
        found: Tensor | None = getattr(self, "found_inf", None)  # (), above 0 if GradScaler found one
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                updated = [*weights, *itertools.chain(*self._state_of(weights))] if found is not None else []
                before = [tensor.clone() for tensor in updated]
                self._step(group, weights, [p.grad for p in weights])
                if found is not None:
                    for tensor, old in zip(updated, before, strict=True):
                        tensor.copy_(torch.where(found > 0, old, tensor))

    def _step(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        steps, means, squares = self._state_of(weights)
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        # Bias correction of the moments, which start at zero.  Kingma and Ba 2014, https://arxiv.org/abs/1412.6980.
        count = steps[0].double()
        roots = torch._foreach_sqrt(torch._foreach_div(squares, 1 - beta2**count))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(torch._foreach_div(means, 1 - beta1**count), roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            norms = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(updates))
            ratios = torch.where((norms[0] > 0) & (norms[1] > 0), norms[0] / norms[1], 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _state_of(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Step count, first and second moment of the gradient of each weight; zeros before the first step."""
        for p in weights:
            if not self.state[p]:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                self.state[p] = {"step": torch.zeros((), device=p.device), **zeros}
        names = ("step", "exp_avg", "exp_avg_sq")
        steps, means, squares = ([self.state[p][name] for p in weights] for name in names)
        return steps, means, squares
