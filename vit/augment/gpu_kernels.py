"""The Triton kernels of augmentation, if they can be compiled here."""

import functools
import subprocess
from collections.abc import Callable

import torch
from torch import Tensor

from vit.run.progress import show


@functools.cache
def gpu_warp() -> Callable[[Tensor, Tensor, tuple[int, int, int]], Tensor] | None:
    """The affine warp as one kernel; None where it cannot be compiled, e.g. without a C compiler."""
    try:
        from vit.augment.warp_kernel import warp

        images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8, device="cuda")
        warp(images, torch.zeros(1, 6, dtype=torch.float64, device="cuda"), (0, 0, 0))
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        show(f"augmentation is slower than it could be: Triton cannot compile its kernel ({error})", lasting=True)
        return None
    return warp
