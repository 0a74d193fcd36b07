"""Augmentation of a shard on its device: flip, RandAugment, label smoothing, mixup or cutmix, normalisation.

    (B, H, W, 3) uint8, (B,) int64 -> (B, 3, H, W) float32, (B, C) float32

All of it is a pure function of the images and a key, which `vit.keys` makes of (seed, step, shard): nothing to save,
nothing to replay.  What each image draws comes from a generator on the device and what the shard draws once from one
on the host, so that nothing is ever copied back from the device and the host never waits for it.

Shapes: B images, H, W pixels, C classes.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vit import randaugment
from vit.config import AugmentConfig


def augment(images: Tensor, labels: Tensor, cfg: AugmentConfig, num_classes: int, key: int) -> tuple[Tensor, Tensor]:
    """(B, H, W, 3) uint8, (B,) int64 -> (B, 3, H, W) float32 normalised, (B, C) float32 soft targets that sum to 1."""
    B, H, W, _ = images.shape
    generator = torch.Generator(images.device).manual_seed(key)
    images = images.permute(0, 3, 1, 2).contiguous()  # (B, 3, H, W)

    flip = torch.rand(B, generator=generator, device=images.device) < cfg.flip
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    for _ in range(cfg.randaugment_ops):
        op, sign = randaugment.draw(B, generator)
        images = randaugment.apply(images, op, cfg.randaugment_magnitude, sign)

    targets = smooth_targets(labels, num_classes, cfg.label_smoothing)
    if mix := draw_mix(cfg, H, W, key):
        images, targets = mix.images(images), mix.targets(targets)
    return _normalise(images, cfg), targets


def normalise(images: Tensor, cfg: AugmentConfig) -> Tensor:
    """What evaluation does instead: (B, H, W, 3) uint8 -> (B, 3, H, W) float32."""
    return _normalise(images.permute(0, 3, 1, 2).contiguous(), cfg)


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """One-hot targets, of which `smoothing` is spread evenly over all classes: (B,) int64 -> (B, C) float32.

    Szegedy et al. 2015, https://arxiv.org/abs/1512.00567; the same as F.cross_entropy's label_smoothing.
    """
    even = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), even, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + even)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How each image of a shard is mixed with the one before it, and the first with the last."""

    own: float  # lambda: share of the target that is the image's own; exactly its share of the pixels, for cutmix
    box: tuple[int, int, int, int] | None  # cutmix's top, bottom, left, right, where the other shows; None: mixup

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> the same, or float32 for mixup."""
        other = images.roll(1, 0)
        if self.box is None:
            return images * self.own + other * (1 - self.own)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        return mixed

    def targets(self, targets: Tensor) -> Tensor:
        """(B, C) float32 -> (B, C) float32."""
        return targets * self.own + targets.roll(1, 0) * (1 - self.own)


def draw_mix(cfg: AugmentConfig, H: int, W: int, key: int) -> Mix | None:
    """A shard's mixup or cutmix, either with probability 1/2 if the config has both; None if it has neither.

    mixup: Zhang et al. 2017, https://arxiv.org/abs/1710.09412; cutmix: Yun et al. 2019,
    https://arxiv.org/abs/1905.04899, with the box as torchvision draws it.
    """
    if not cfg.mixup and not cfg.cutmix:
        return None
    random = np.random.Generator(np.random.Philox(key=key))
    cutmix = random.random() < 0.5 if cfg.mixup and cfg.cutmix else cfg.cutmix > 0
    own = random.beta(cfg.cutmix, cfg.cutmix) if cutmix else random.beta(cfg.mixup, cfg.mixup)
    if not cutmix:
        return Mix(own=own, box=None)
    y, x = int(random.integers(H)), int(random.integers(W))
    half_h, half_w = (int(0.5 * math.sqrt(1 - own) * side) for side in (H, W))
    top, bottom, left, right = max(y - half_h, 0), min(y + half_h, H), max(x - half_w, 0), min(x + half_w, W)
    return Mix(own=1 - (bottom - top) * (right - left) / (H * W), box=(top, bottom, left, right))


def _normalise(images: Tensor, cfg: AugmentConfig) -> Tensor:
    """(B, 3, H, W) uint8, or float32 of 0 to 255 -> (B, 3, H, W) float32."""
    return (images - _levels(cfg.mean, images.device)).div_(_levels(cfg.std, images.device))


@functools.cache  # once for each device: a copy from the host would wait for all that the device has yet to do
def _levels(fractions: tuple[float, float, float], device: torch.device) -> Tensor:
    """A value for each channel, as a grey level: (1, 3, 1, 1) float32."""
    return 255 * torch.tensor(fractions, device=device).view(1, 3, 1, 1)
