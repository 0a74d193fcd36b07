"""The Triton kernel of the affine warp, run by Triton's interpreter on the CPU."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import CHECKOUT, ROOT

PROGRAM = """
import numpy as np
import torch
from vit.augment import pixel_ops, warp_kernel

random = np.random.default_rng(0)
images = torch.from_numpy(random.integers(0, 256, (8, 3, 37, 41), dtype=np.uint8))
matrices = random.normal([1, 0, 0, 1, 0, 0], [0.2, 0.3, 9, 0.2, 0.3, 9], (8, 6))
matrices[0] = 1, 0, 3, 1, 0, -2  # by whole pixels
matrices[1] = 1, 0, 4e5, 1, 0, -1e12  # far outside
matrices[2] = 1, 0, 0.5, 1, 0, 40.5
expected = images.clone()
pixel_ops.Selection(expected, np.arange(8)).warp(matrices, (1, 116, 0))
out = warp_kernel.warp(images, torch.from_numpy(matrices), (1, 116, 0))
assert torch.equal(out, expected), int((out != expected).sum())
assert (expected[1] == torch.tensor([1, 116, 0])[:, None, None]).all()
out = warp_kernel.warp(images.repeat_interleave(2, 0)[::2], torch.from_numpy(matrices), (1, 116, 0))
assert torch.equal(out, expected), "every second image of a tensor"
"""


def test_the_gpu_kernel_gives_the_bytes_of_the_cpu() -> None:
    """For rotated, sheared and shifted images, at any distance outside of the image, and for any fill color."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment, cwd=CHECKOUT, timeout=120)
