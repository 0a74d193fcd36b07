"""The Triton kernels of augmentation, if they can be compiled here."""

import functools
import subprocess
from collections.abc import Callable

import torch
from torch import Tensor

from vit.run.progress import show

Warp = Callable[[Tensor, Tensor, tuple[int, int, int]], Tensor]


@functools.cache
def gpu_warp() -> Warp | None:
    """The affine warp as one kernel; None where it cannot be compiled, e.g. without a C compiler."""
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8, device="cuda")
    matrices = torch.zeros(1, 6, dtype=torch.float64, device="cuda")
    try:
        from triton.errors import TritonError

        from vit.augment.warp_kernel import warp
    except ImportError as error:
        _show_reason(error)
        return None
    try:
        warp(images, matrices, (0, 0, 0))
    except (OSError, RuntimeError, TritonError, subprocess.CalledProcessError) as error:
        _show_reason(error)
        return None
    return warp


def _show_reason(error: Exception) -> None:
    reason = str(error).strip().partition("\n")[0]  # compilers write many lines
    show(f"augmentation is slower than it could be: Triton cannot compile its kernel ({reason})", lasting=True)
