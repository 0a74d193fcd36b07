"""What tests of optimizers share: steps with seeded gradients, and a watch for waiting on the GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def steps(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    count: int,
    also: Callable[[int, dict[str, Tensor]], None] | None = None,
) -> list[Tensor]:
    """The weights after `count` steps with seeded random gradients and a decreasing learning rate.

    `also` is called with each step and its gradients.
    """
    random = torch.Generator().manual_seed(1)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        gradients = {}
        for name, p in model.named_parameters():
            gradients[name] = p.grad = torch.randn(p.shape, generator=random) * 10 ** (step % 3 - 1)
        if also is not None:
            also(step, gradients)
        optimizer.step()
    return list(model.parameters())


class NeverWaiting(TorchDispatchMode):
    """Forbids to read the value of a tensor, for which Python waits until a GPU has computed it."""

    def __torch_dispatch__(self, operation: Any, _: object, args: Any = (), kwargs: Any = None) -> object:
        assert operation is not torch.ops.aten._local_scalar_dense.default, "reads a tensor's value"
        return operation(*args, **(kwargs or {}))
