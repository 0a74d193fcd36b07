"""Augmentation of micro-batches on their device: flip, RandAugment, 3-Augment, erasing, mixup or CutMix, normalization.

    (B, H, W, 3) uint8, (B,) int64 -> (B, 3, H, W) float32, (B, C) float32

With `side`, images are resized to `side` x `side` pixels by Lanczos's filter: after flip, RandAugment, 3-Augment and
color jitter, before normalization, erasing, mixup and CutMix, which get images of that size.  This is what
EfficientTrain++ does: https://github.com/LeapLabTHU/EfficientTrain/blob/main/datasets_buffer.py

The result is a pure function of the images and a key, which `vit.random_keys` derives from (seed, step, micro-batch),
so there is no generator state to save.  Random numbers are drawn on the host, so that all devices get the same ones and
the host never waits for the device.  Only the noise of random erasing is generated on the device.

Shapes: B images, H, W pixels, C classes.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vit.augment import lanczos, pixel_ops
from vit.augment.draws import draw, join
from vit.augment.mixup import erase, smooth_targets
from vit.augment.pixel_ops import to_planes
from vit.augment.randaugment import rand_augment
from vit.augment.three_augment import color_jitter, three_augment
from vit.config.sections import AugmentConfig


def augment(
    images: Tensor,
    labels: Tensor,
    cfg: AugmentConfig,
    num_classes: int,
    key: int,
    mix_distance: int = 1,
    side: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Augments a micro-batch: (B, H, W, 3) uint8, (B,) int64 -> (B, 3, H, W) float32, (B, C) float32.

    The images are normalized; the targets are soft and sum to 1 for each image.  Mixup and CutMix mix each image with
    the one `mix_distance` places before it, cyclically.  `side`: of the result, in pixels; None: that of the images.
    """
    return augment_micro_batches(images, labels, cfg, num_classes, [key], mix_distance, side)


def augment_micro_batches(
    images: Tensor,
    labels: Tensor,
    cfg: AugmentConfig,
    num_classes: int,
    keys: Sequence[int],
    mix_distance: int = 1,
    side: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Augments micro-batches of equal size that follow each other, in far fewer kernels than one after the other.

    The values of each depend on its own key only, as if it had been augmented alone; B counts the images of all.
    """
    B, H, W, _ = images.shape
    m = B // len(keys)
    drawn = [draw(cfg, m, H, W, (side or H, side or W), key, mix_distance) for key in keys]
    draws = join([each for each, _ in drawn])
    images = to_planes(images, draws.mirrored)  # (B, 3, H, W)
    images = rand_augment(images, draws.operations, draws.amounts, cfg)
    if cfg.three_augment:
        images = three_augment(images, draws.three_augment, draws.sigma)
    if cfg.color_jitter:
        images = color_jitter(images, draws.jitter_order, draws.jitter_factors)
    if side is not None:
        images = lanczos.resize(images, side)

    values, targets = _normalize(images, cfg), smooth_targets(labels, num_classes, cfg.label_smoothing)
    if cfg.erasing:
        noise = [torch.Generator(images.device).manual_seed(key) for key in keys]
        values = erase(values, draws.boxes, cfg.erasing_fill, noise)
    for j, (_, mix) in enumerate(drawn):
        if mix is not None:
            mine = slice(j * m, (j + 1) * m)
            mix.images(values[mine])  # in place
            targets[mine] = mix.targets(targets[mine])
    return values, targets


def normalize(images: Tensor, cfg: AugmentConfig) -> Tensor:
    """Normalizes without augmentation, for evaluation: (B, H, W, 3) uint8 -> (B, 3, H, W) float32."""
    return _normalize(to_planes(images, np.zeros(len(images), np.bool_)), cfg)


def _normalize(images: Tensor, cfg: AugmentConfig) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, H, W) float32."""
    return pixel_ops.normalize(images, channel_levels(cfg.mean, images.device), channel_levels(cfg.std, images.device))


@functools.cache  # copied once per device: a copy from pageable host memory waits for the device's queued work
def channel_levels(fractions: tuple[float, float, float], device: torch.device) -> Tensor:
    """Per-channel values in [0, 1], e.g. a mean, scaled to levels 0 to 255: (1, 3, 1, 1) float32."""
    return 255 * torch.tensor(fractions, device=device).view(1, 3, 1, 1)
