"""Soft targets, mixup, CutMix and random erasing for a micro-batch.

Shapes: B images, H, W pixels, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.pixel_ops import chunks
from vit.config.sections import AugmentConfig


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """One-hot targets with label smoothing: (B,) int64 -> (B, C) float32.

    A share `smoothing` of each target is spread evenly over all classes.

    Szegedy et al. 2015, https://arxiv.org/abs/1512.00567; the same as F.cross_entropy's label_smoothing.
    """
    even = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), even, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + even)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Mixup or CutMix of each image of a micro-batch with the one `distance` places before it, cyclically."""

    lam: float  # lambda: weight of the image's own target; for CutMix, exactly its share of the pixels
    box: tuple[int, int, int, int] | None  # CutMix: top, bottom, left, right of the pasted region; None: mixup
    distance: int = 1  # less than B

    def images(self, images: Tensor) -> Tensor:
        """Mixes images in place: (B, 3, H, W) float32 -> the same."""
        d = self.distance
        if self.box is not None:
            top, bottom, left, right = self.box
            images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].roll(d, 0)
            return images
        last = images[-d:].clone()
        # From the last image to the first, because each is mixed with the original of an earlier one.
        for chunk in reversed(chunks(d, len(images), images.device)):
            images[chunk] = images[chunk.start - d : chunk.stop - d].lerp(images[chunk], self.lam)
        images[:d] = last.lerp(images[:d], self.lam)
        return images

    def targets(self, targets: Tensor) -> Tensor:
        """Mixes targets: (B, C) float32 -> (B, C) float32."""
        return targets * self.lam + targets.roll(self.distance, 0) * (1 - self.lam)


def draw_mix(cfg: AugmentConfig, H: int, W: int, random: np.random.Generator, distance: int = 1) -> Mix | None:
    """Draws mixup or CutMix for a micro-batch: either with probability 1/2 if the config has both, None if neither.

    mixup: Zhang et al. 2017, https://arxiv.org/abs/1710.09412; CutMix: Yun et al. 2019,
    https://arxiv.org/abs/1905.04899, with the box drawn as in torchvision.
    """
    if not cfg.mixup and not cfg.cutmix:
        return None
    cutmix = random.random() < 0.5 if cfg.mixup and cfg.cutmix else cfg.cutmix > 0
    lam = random.beta(cfg.cutmix, cfg.cutmix) if cutmix else random.beta(cfg.mixup, cfg.mixup)
    if not cutmix:
        return Mix(lam=lam, box=None, distance=distance)
    y, x = int(random.integers(H)), int(random.integers(W))
    half_h, half_w = (int(0.5 * math.sqrt(1 - lam) * side) for side in (H, W))
    top, bottom, left, right = max(y - half_h, 0), min(y + half_h, H), max(x - half_w, 0), min(x + half_w, W)
    share = 1 - (bottom - top) * (right - left) / (H * W)
    return Mix(lam=share, box=(top, bottom, left, right), distance=distance)


_AREA, _ASPECT, _ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # as in the paper


def draw_erasing(B: int, H: int, W: int, probability: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Draws the box of random erasing for each image: (B, 4) of top, bottom, left, right; empty if nothing is erased.

    Zhong et al. 2017, https://arxiv.org/abs/1708.04896: the first of ten draws that fits, each with an area of 2 to
    33 % of the image and an aspect ratio that is uniform on a logarithmic scale.
    """
    chosen = random.random(B) < probability
    area = random.uniform(*_AREA, (_ATTEMPTS, B)) * (H * W)
    aspect = np.exp(random.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1]), (_ATTEMPTS, B)))
    h, w = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (h < H) & (w < W)
    first, image = fits.argmax(0), np.arange(B)
    h, w = (np.where(chosen & fits.any(0), side[first, image], 0) for side in (h, w))
    top, left = (np.floor(random.random(B) * (side - length + 1)) for side, length in ((H, h), (W, w)))
    return np.stack((top, top + h, left, left + w), axis=1).astype(np.int64)


def erase(
    images: Tensor, boxes: NDArray[np.int64], fill: Literal["noise", "mean"], generators: Sequence[torch.Generator]
) -> Tensor:
    """Overwrites each image's box in place: (B, 3, H, W) float32, normalized -> the same.

    `noise` fills it with normal noise for each pixel, as in DeiT; `mean` with the channel's mean, which is 0, as in
    torchvision.  Each of the generators makes the noise of one micro-batch.
    """
    erased = np.flatnonzero(boxes[:, 1] > boxes[:, 0])
    if not len(erased):
        return images
    device, (H, W) = images.device, images.shape[2:]
    indices, edges = (torch.from_numpy(a).to(device, non_blocking=True) for a in (erased, boxes[erased]))
    top, bottom, left, right = edges.T[:, :, None]  # (n, 1) each
    y, x = torch.arange(H, device=device), torch.arange(W, device=device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)  # (n, H), (n, W)
    inside = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, H, W)
    new = _noise(boxes, H, W, generators) if fill == "noise" else torch.zeros((), device=device)
    images[indices] = torch.where(inside, new, images[indices])
    return images


def _noise(boxes: NDArray[np.int64], H: int, W: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise for the n images that have a box: (B, 4) -> (n, 3, H, W) float32."""
    counts = (boxes[:, 1] > boxes[:, 0]).reshape(len(generators), -1).sum(1).tolist()  # in each micro-batch
    return torch.cat(
        [torch.randn(n, 3, H, W, generator=g, device=g.device) for n, g in zip(counts, generators, strict=True)]
    )
