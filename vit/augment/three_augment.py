"""DeiT-III's 3-Augment and color jitter on batches of uint8 images.

Touvron et al. 2022, https://arxiv.org/abs/2204.07118, https://github.com/facebookresearch/deit/blob/main/augment.py
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.pixel_ops import Floats, Ints, Selection, apply_by_choice
from vit.augment.randaugment import invert_from

GRAY, SOLARIZE, BLUR = range(3)
BRIGHTNESS, CONTRAST, SATURATION = range(3)
_SIGMA = (0.1, 2.0)  # standard deviation of the blur in pixels, [min, max]
_RADIUS = 6  # radius of the blur's kernel in pixels: three times the largest sigma


def draw_three_augment(B: int, random: np.random.Generator) -> tuple[Ints, Floats]:
    """Draws the operation of each image, with probability 1/3 each, and the sigma of a blur in pixels: 2 x (B,)."""
    return random.integers(3, size=B), random.uniform(*_SIGMA, B)


def three_augment(images: Tensor, choice: Ints, sigma: Floats) -> Tensor:
    """Converts each image to grayscale, solarizes it or blurs it, as drawn.

    (B, 3, H, W) uint8, 2 x (B,) -> the images.  `images` may be overwritten.
    """

    def run(selection: Selection, operation: int, indices: Ints) -> None:
        if operation == GRAY:
            selection.color(np.full(len(selection), -1, np.float32))
        elif operation == SOLARIZE:
            invert_from(selection, 128)
        else:
            selection.apply(lambda images: blur(images, sigma[indices]))

    return apply_by_choice(images, choice, run)


def draw_color_jitter(B: int, strength: float, random: np.random.Generator) -> tuple[Ints, Floats]:
    """Draws the order of the three changes for each image, and their factors, up to `strength` from 1: 2 x (B, 3)."""
    order = random.permuted(np.tile(np.arange(3), (B, 1)), axis=1)
    return order, random.uniform(1 - strength, 1 + strength, (B, 3))


def color_jitter(images: Tensor, order: Ints, factors: Floats) -> Tensor:
    """Changes brightness, contrast and saturation by the drawn factors, in the drawn order of each image.

    (B, 3, H, W) uint8, 2 x (B, 3) -> the images.  This is torchvision's ColorJitter without hue.  `images` may be
    overwritten.
    """

    def run(selection: Selection, operation: int, indices: Ints) -> None:
        adjust(selection, operation, factors[indices, operation])

    for k in range(3):
        images = apply_by_choice(images, order[:, k], run)
    return images


def adjust(selection: Selection, operation: int, factor: NDArray[Any]) -> None:
    """Multiplies brightness, contrast or saturation by a factor for each image: (n,).

    That is, blends each image with black, with its mean gray level or with its grayscale version.
    """
    amount = factor.astype(np.float32) - np.float32(1)
    if operation == SATURATION:
        selection.color(amount)
        return
    level = torch.arange(256, dtype=torch.float32, device=selection.images.device)
    other = torch.zeros_like(level)
    if operation == CONTRAST:
        other = selection.gray_sums()[:, None] / selection.images[0, 0].numel()  # (n, 1)
    levels = level + (level - other) * selection.to_device(amount)[..., 0, 0]  # (n, 256)
    selection.lookup(levels.clamp_(0, 255).to(torch.uint8)[:, None])


def blur(images: Tensor, sigma: NDArray[Any]) -> Tensor:
    """Gaussian blur with replicated borders: (n, 3, H, W) uint8, (n,) in pixels -> (n, 3, H, W) uint8."""
    H, W = images.shape[2:]
    offset = np.arange(-_RADIUS, _RADIUS + 1)
    weight = np.exp(-(offset**2) / (2 * sigma[:, None] ** 2))
    kernel = torch.from_numpy((weight / weight.sum(1, keepdims=True)).astype(np.float32))
    taps = kernel.to(images.device, non_blocking=True)[..., None, None, None].unbind(1)  # of (n, 1, 1, 1)
    padded = F.pad(images.float(), (_RADIUS,) * 4, mode="replicate")
    across = torch.zeros((*images.shape[:2], H + 2 * _RADIUS, W), device=images.device)
    for k, tap in enumerate(taps):
        across.addcmul_(padded[..., k : k + W], tap)
    down = torch.zeros(images.shape, device=images.device)
    for k, tap in enumerate(taps):
        down.addcmul_(across[..., k : k + H, :], tap)
    return down.round_().clamp_(0, 255).to(torch.uint8)
