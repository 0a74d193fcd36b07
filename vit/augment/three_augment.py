"""3-Augment and color jitter on whole batches of uint8 images, as DeiT-III's recipe has them.

Touvron et al. 2022, https://arxiv.org/abs/2204.07118, https://github.com/facebookresearch/deit/blob/main/augment.py
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.pixel_ops import Ints, Part, by_choice
from vit.augment.randaugment import invert_from

GRAY, SOLARIZE, BLUR = range(3)
BRIGHTNESS, CONTRAST, SATURATION = range(3)
_SIGMA = (0.1, 2.0)  # of the blur, in pixels
_TAPS = 6  # pixels on either side that a blur sees: three sigma


def three_augment(images: Tensor, random: np.random.Generator) -> Tensor:
    """Makes each image gray, solarizes it or blurs it, a third each: (B, 3, H, W) uint8 -> the same.

    The images given may be overwritten.
    """
    choice, sigma = random.integers(3, size=len(images)), random.uniform(*_SIGMA, len(images))

    def run(part: Part, which: int, at: Ints) -> None:
        if which == GRAY:
            part.color(np.full(len(part), -1, np.float32))
        elif which == SOLARIZE:
            invert_from(part, 128)
        else:
            part.change(lambda images: blur(images, sigma[at]))

    return by_choice(images, choice, run)


def color_jitter(images: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """Changes brightness, contrast and saturation by up to `strength` each, in an order of each image's own.

    (B, 3, H, W) uint8 -> the same; torchvision's ColorJitter without hue.  The images given may be overwritten.
    """
    order = random.permuted(np.tile(np.arange(3), (len(images), 1)), axis=1)  # (B, 3)
    factors = random.uniform(1 - strength, 1 + strength, (len(images), 3))

    def run(part: Part, which: int, at: Ints) -> None:
        adjust(part, which, factors[at, which])

    for turn in range(3):
        images = by_choice(images, order[:, turn], run)
    return images


def adjust(part: Part, which: int, factor: NDArray[Any]) -> None:
    """Towards black, the mean gray or its own gray by a factor for each image: (n,)."""
    amount = factor.astype(np.float32) - np.float32(1)
    if which == SATURATION:
        part.color(amount)
        return
    level = torch.arange(256, dtype=torch.float32, device=part.images.device)
    other = part.gray_sums()[:, None] / part.images[0, 0].numel() if which == CONTRAST else torch.zeros_like(level)
    levels = level + (level - other) * part.there(amount)[..., 0, 0]  # (n, 256)
    part.lookup(levels.clamp_(0, 255).to(torch.uint8)[:, None])


def blur(images: Tensor, sigma: NDArray[Any]) -> Tensor:
    """Gaussian, with the border's pixels repeated outside: (n, 3, H, W) uint8, (n,) in pixels -> the same."""
    H, W = images.shape[2:]
    offset = np.arange(-_TAPS, _TAPS + 1)
    weight = np.exp(-(offset**2) / (2 * sigma[:, None] ** 2))
    there = torch.from_numpy((weight / weight.sum(1, keepdims=True)).astype(np.float32)).to(
        images.device, non_blocking=True
    )
    taps = there[..., None, None, None].unbind(1)  # of (n, 1, 1, 1)
    padded = F.pad(images.float(), (_TAPS,) * 4, mode="replicate")
    across = torch.zeros((*images.shape[:2], H + 2 * _TAPS, W), device=images.device)
    for k, tap in enumerate(taps):
        across.addcmul_(padded[..., k : k + W], tap)
    down = torch.zeros(images.shape, device=images.device)
    for k, tap in enumerate(taps):
        down.addcmul_(across[..., k : k + H, :], tap)
    return down.round_().clamp_(0, 255).to(torch.uint8)
