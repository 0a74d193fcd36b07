"""Gradient clipping as a part of the optimizer's step."""

import torch
from torch import Tensor, nn


def clip_and_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float
) -> Tensor:
    """Steps the optimizer with the gradient scaled to a norm of at most `clip_norm` (0: any); returns its norm before.

    torch's fused AdamW divides gradients by `grad_scale` as it reads them, so that clipping takes no pass over them of
    its own.  Nothing here waits for the device.
    """
    scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm and _divides_by_scale(optimizer):
        optimizer.grad_scale = ((norm + 1e-6) / clip_norm).clamp(min=1.0)  # type: ignore[attr-defined]
    elif clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    scaler.step(optimizer)
    scaler.update()
    vars(optimizer).pop("grad_scale", None)  # GradScaler, if it is enabled, has removed it
    return norm


def _divides_by_scale(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults["fused"])
