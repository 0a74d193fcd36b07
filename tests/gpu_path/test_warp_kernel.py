"""The Triton kernel of the affine warp is compiled for a GPU, or the warp runs in torch."""

from unittest import mock

import numpy as np
import pytest
import torch

from tests.helpers.null_gpu_ranks import NullGpu
from vit.augment import gpu_kernels
from vit.augment.pixel_ops import Selection

triton = pytest.importorskip("triton")


def compile_for(sizes: list[tuple[int, int]]) -> None:
    from vit.augment.warp_kernel import warp

    for height, width in sizes:
        images = torch.zeros(2, 3, height, width, dtype=torch.uint8, device="cuda")
        warp(images, torch.zeros(2, 6, dtype=torch.float64, device="cuda"), (0, 1, 16))


def test_the_kernel_is_compiled_for_images_of_any_size(null_gpu: NullGpu) -> None:
    """Triton compiles another kernel where a number is 1 or a multiple of 16."""
    null_gpu.run(compile_for, [(1, 1), (1, 7), (7, 1), (16, 16)])


def warp_without_kernel(error: Exception) -> tuple[object, list[str]]:
    """Warps an image where the kernel raises an error; returns what is used in its place, and what is shown."""
    with (
        mock.patch("vit.augment.warp_kernel.warp", side_effect=error),
        mock.patch("vit.augment.gpu_kernels.show") as show,
    ):
        images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8, device="cuda")
        Selection(images, np.arange(1)).warp(np.zeros((1, 6)), (0, 0, 0))
        return gpu_kernels.gpu_warp(), [call.args[0] for call in show.call_args_list]


def test_a_kernel_that_cannot_be_compiled_is_not_used(null_gpu: NullGpu) -> None:
    """Training goes on with the warp in torch, and says why in one line."""
    compiler_error = triton.runtime.errors.PTXASError("no disk space\nRepro command: ptxas")
    for error, reason in ((compiler_error, "PTXAS error: no disk space"), (RuntimeError("no gcc"), "no gcc")):
        ((used, (line,)),) = null_gpu.run(warp_without_kernel, error)
        assert used is None
        assert line.endswith(f"Triton cannot compile its kernel ({reason})")
