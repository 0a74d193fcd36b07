"""LAMB: AdamW's step for each weight matrix, made as long as the matrix itself.

You et al. 2019, "Large Batch Optimization for Deep Learning", https://arxiv.org/abs/1904.00962, algorithm 2.  As in
NVIDIA's FusedLAMB, which DeiT-III was trained with, the ratio applies only where weight decay does: norms, biases,
positions and the class token take Adam's step.  FusedLAMB also clips the gradient to a norm of 1; here that is
`optim.clip_norm`, for every optimizer alike.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """What it remembers of each weight has AdamW's names: `step`, `exp_avg`, `exp_avg_sq`.  Never waits for a GPU."""

    def __init__(self, params: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of all weights that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(group, weights, [p.grad for p in weights])

    def _step(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        steps, means, squares = self._remembered(weights)
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        # Both means start at zero; dividing by what they have seen of all there is undoes it.  Kingma and Ba 2014.
        count = steps[0].double()
        roots = torch._foreach_sqrt(torch._foreach_div(squares, 1 - beta2**count))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(torch._foreach_div(means, 1 - beta1**count), roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            lengths = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(updates))
            ratios = torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[0] / lengths[1], 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _remembered(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Steps taken, and the gradient's mean and mean square, of each weight; zeros before the first step."""
        for p in weights:
            if not self.state[p]:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                self.state[p] = {"step": torch.zeros((), device=p.device), **zeros}
        names = ("step", "exp_avg", "exp_avg_sq")
        steps, means, squares = ([self.state[p][name] for p in weights] for name in names)
        return steps, means, squares
