"""Muon for the weight matrices of the blocks, AdamW for all other parameters, with one learning rate for both.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: the update of a matrix is its gradient with momentum,
orthogonalized (all singular values become about 1) by five Newton-Schulz iterations in bfloat16.  Q, K and V, which are
one matrix here, are orthogonalized separately, and embeddings, head, norms and biases get AdamW, as the authors
recommend.  The update of an (A, B) matrix is scaled by 0.2 · √max(A, B), so that its elements are as large as AdamW's,
and AdamW's learning rate and weight decay fit: Liu et al. 2025, https://arxiv.org/abs/2502.16982.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for groups of matrices and its fused AdamW for other groups.  `step()` never waits for the GPU.

    Groups and state are shared with both: `momentum_buffer` of each matrix, AdamW's `step`, `exp_avg` and `exp_avg_sq`
    of each other parameter.  A matrix in `stacked` consists of that many matrices, one below the other, each of which
    is orthogonalized alone.
    """

    # torch's GradScaler then leaves it to `step()` to skip an update, and does not wait for the GPU to decide about it.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        stacked: dict[Tensor, int],
    ) -> None:
        super().__init__([*others, *(group | {"momentum": momentum} for group in matrices)], {"lr": lr})
        self._adamw = torch.optim.AdamW(self.param_groups[: len(others)], betas=betas, eps=eps, fused=True)
        self._adamw.state = self.state
        self._matrices = self.param_groups[len(others) :]
        # Views of the weights: an in-place update of a view updates the weight.
        self._views = {
            p: list(p.detach().chunk(stacked.get(p, 1))) for group in self._matrices for p in group["params"]
        }
        views = [
            {key: value for key, value in group.items() if key != "params"}
            | {"params": [view for p in group["params"] for view in self._views[p]]}
            for group in self._matrices
        ]
        self._muon = torch.optim.Muon(views, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient; none if GradScaler found a gradient that is not finite."""
        assert closure is None
        assert getattr(self, "grad_scale", None) is None, "the gradients are not unscaled"
        found: Tensor | None = getattr(self, "found_inf", None)  # (), above 0 if GradScaler found one
        self._adamw.grad_scale, self._adamw.found_inf = None, found  # type: ignore[attr-defined]
        self._adamw.step()
        self._adamw.found_inf = None  # type: ignore[attr-defined]

        weights = [p for group in self._matrices for p in group["params"] if p.grad is not None]
        updated = [*weights, *(self._momentum_of(p) for p in weights)]
        before = [tensor.clone() for tensor in updated] if found is not None else []
        self._step_matrices(weights)
        if found is not None:
            for tensor, old in zip(updated, before, strict=True):
                tensor.copy_(torch.where(found > 0, old, tensor))

    def _step_matrices(self, weights: list[Tensor]) -> None:
        for p in weights:
            views = self._views[p]
            assert p.grad is not None
            momentum = self._momentum_of(p).chunk(len(views))
            for view, gradient, buffer in zip(views, p.grad.chunk(len(views)), momentum, strict=True):
                view.grad = gradient
                self._muon.state[view]["momentum_buffer"] = buffer
        for group, own in zip(self._matrices, self._muon.param_groups, strict=True):
            own["lr"] = group["lr"]
        self._muon.step()
        self._muon.zero_grad()

    def _momentum_of(self, weight: Tensor) -> Tensor:
        """The moving average of the gradient; zeros before the first step."""
        if "momentum_buffer" not in self.state[weight]:
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return self.state[weight]["momentum_buffer"]
