"""Synthetic images for tests of augmentation (tensors) and of decoding (arrays and JPEGs)."""

import io
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]


def photographs(count: int, H: int, W: int) -> Tensor:
    """Gradients, edges and some noise, with less than the full range of levels: (count, 3, H, W) uint8."""
    random = torch.Generator().manual_seed(H * W)
    x, y = torch.linspace(0, 1, W), torch.linspace(0, 1, H)[:, None]
    frequency, phase, tint = (torch.rand(count, 3, 1, 1, generator=random) for _ in range(3))
    smooth = torch.sin(2 * math.pi * (frequency * 3 * x + y + phase)) * 60 + 70 + tint * 60
    edges = 40 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1)
    return (smooth + edges + 4 * torch.randn(count, 3, H, W, generator=random)).clamp(12, 243).to(torch.uint8)


def noise(count: int, H: int, W: int) -> Tensor:
    """Uniform noise over all levels: (count, 3, H, W) uint8."""
    random = torch.Generator().manual_seed(H + W)
    return torch.randint(256, (count, 3, H, W), generator=random, dtype=torch.uint8)


def one_color(count: int, H: int, W: int) -> Tensor:
    """Images of a single color each: no contrast to stretch, nothing to equalize: (count, 3, H, W) uint8."""
    return torch.arange(count * 3, dtype=torch.uint8).mul(40).view(count, 3, 1, 1).expand(count, 3, H, W).contiguous()


def micro_batch(B: int = 32, side: int = 24, classes: int = 10) -> tuple[Tensor, Tensor]:
    """A micro-batch as the loader yields it: (B, H, W, 3) uint8, (B,) int64."""
    labels = torch.randint(classes, (B,), generator=torch.Generator().manual_seed(1))
    return noise(B, side, side).permute(0, 2, 3, 1).contiguous(), labels


def photograph_array(height: int, width: int, seed: int) -> Pixels:
    """Gradients, an edge and noise: (height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    smooth = np.stack([128 + 70 * np.sin(9 * x + 5 * y + c) + 50 * np.sin(40 * x * y + c) for c in range(3)], axis=2)
    smooth[height // 4 : height // 2, width // 3 :] = random.integers(0, 256, 3)
    return (smooth + random.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def encode_jpeg(pixels: Pixels, **options: object) -> bytes:
    """A JPEG file, written by Pillow with these options of its JPEG writer."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in decibels; infinite if the images are equal."""
    error = np.square(a.astype(float) - b).mean()
    return 10 * math.log10(255**2 / error) if error else math.inf
