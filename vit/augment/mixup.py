"""What is done across the images of a micro-batch: soft targets, mixup and cutmix, random erasing.

Shapes: B images, H, W pixels, C classes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.pixel_ops import pieces
from vit.config.schema import AugmentConfig


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """One-hot targets, of which `smoothing` is spread evenly over all classes: (B,) int64 -> (B, C) float32.

    Szegedy et al. 2015, https://arxiv.org/abs/1512.00567; the same as F.cross_entropy's label_smoothing.
    """
    even = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), even, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + even)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How each image of a micro-batch is mixed with the one before it, and the first with the last."""

    own: float  # lambda: share of the target that is the image's own; exactly its share of the pixels, for cutmix
    box: tuple[int, int, int, int] | None  # cutmix's top, bottom, left, right, where the other shows; None: mixup

    def images(self, images: Tensor) -> Tensor:
        """In place: (B, 3, H, W) float32 -> the same."""
        if self.box is not None:
            top, bottom, left, right = self.box
            images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].roll(1, 0)
            return images
        last = images[-1:].clone()
        for part in reversed(pieces(1, len(images), images.device)):  # from behind: each still needs the one before it
            images[part] = images[part.start - 1 : part.stop - 1].lerp(images[part], self.own)
        images[:1] = last.lerp(images[:1], self.own)
        return images

    def targets(self, targets: Tensor) -> Tensor:
        """(B, C) float32 -> (B, C) float32."""
        return targets * self.own + targets.roll(1, 0) * (1 - self.own)


def draw_mix(cfg: AugmentConfig, H: int, W: int, random: np.random.Generator) -> Mix | None:
    """A micro-batch's mixup or cutmix, either with probability 1/2 if the config has both; None if it has neither.

    mixup: Zhang et al. 2017, https://arxiv.org/abs/1710.09412; cutmix: Yun et al. 2019,
    https://arxiv.org/abs/1905.04899, with the box as torchvision draws it.
    """
    if not cfg.mixup and not cfg.cutmix:
        return None
    cutmix = random.random() < 0.5 if cfg.mixup and cfg.cutmix else cfg.cutmix > 0
    own = random.beta(cfg.cutmix, cfg.cutmix) if cutmix else random.beta(cfg.mixup, cfg.mixup)
    if not cutmix:
        return Mix(own=own, box=None)
    y, x = int(random.integers(H)), int(random.integers(W))
    half_h, half_w = (int(0.5 * math.sqrt(1 - own) * side) for side in (H, W))
    top, bottom, left, right = max(y - half_h, 0), min(y + half_h, H), max(x - half_w, 0), min(x + half_w, W)
    return Mix(own=1 - (bottom - top) * (right - left) / (H * W), box=(top, bottom, left, right))


_AREA, _ASPECT, _ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # of the paper


def draw_erasing(B: int, H: int, W: int, probability: float, random: np.random.Generator) -> NDArray[np.int64]:
    """A box for each image, empty where nothing is erased: (B, 4) of top, bottom, left, right.

    Zhong et al. 2017, https://arxiv.org/abs/1708.04896: an area of 2 to 33 % with an aspect ratio evenly spaced in its
    logarithm, the first of ten draws that fits.
    """
    chosen = random.random(B) < probability
    area = random.uniform(*_AREA, (_ATTEMPTS, B)) * (H * W)
    aspect = np.exp(random.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1]), (_ATTEMPTS, B)))
    h, w = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (h < H) & (w < W)
    first, image = fits.argmax(0), np.arange(B)
    h, w = (np.where(chosen & fits.any(0), side[first, image], 0) for side in (h, w))
    top, left = (np.floor(random.random(B) * (side - own + 1)) for side, own in ((H, h), (W, w)))
    return np.stack((top, top + h, left, left + w), axis=1).astype(np.int64)


def erase(
    images: Tensor, boxes: NDArray[np.int64], fill: Literal["noise", "mean"], generator: torch.Generator
) -> Tensor:
    """Overwrites each image's box, in place: (B, 3, H, W) float32 of mean 0 -> the same.

    With normal noise for each pixel, as DeiT does, or with the channel's mean, which is 0, as torchvision does.
    """
    erased = np.flatnonzero(boxes[:, 1] > boxes[:, 0])
    if not len(erased):
        return images
    device, (H, W) = images.device, images.shape[2:]
    place = torch.from_numpy(erased).to(device, non_blocking=True)
    top, bottom, left, right = (
        torch.from_numpy(boxes[erased]).to(device, non_blocking=True).T[:, :, None]
    )  # (n, 1) each
    y, x = torch.arange(H, device=device), torch.arange(W, device=device)
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[
        :, None, None, :
    ]  # (n, 1, H, W)
    shape = (len(erased), 3, H, W)
    new = torch.randn(shape, generator=generator, device=device) if fill == "noise" else torch.zeros((), device=device)
    images[place] = torch.where(inside, new, images[place])
    return images
