"""The random numbers of augmentation: a pure function of the config and the key of a micro-batch, drawn on the host.

Shapes: B images of a micro-batch, H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit.augment.mixup import Mix, draw_erasing, draw_mix
from vit.augment.pixel_ops import Floats, Ints
from vit.augment.randaugment import draw_rand_augment
from vit.augment.three_augment import draw_color_jitter, draw_three_augment
from vit.config.sections import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What is drawn for each image of one or several micro-batches: rows are images, empty if it is not enabled."""

    mirrored: NDArray[np.bool_]  # (B,)
    operations: Ints  # of RandAugment, one column for each in turn: (B, randaugment_ops)
    amounts: Floats  # of these operations, likewise
    three_augment: Ints  # the operation of 3-Augment: (B,)
    sigma: Floats  # of its blur, in pixels: (B,)
    jitter_order: Ints  # (B, 3)
    jitter_factors: Floats  # (B, 3)
    boxes: Ints  # of random erasing: (B, 4)


def draw(
    cfg: AugmentConfig, B: int, H: int, W: int, result: tuple[int, int], key: int, mix_distance: int
) -> tuple[Draws, Mix | None]:
    """Draws everything for one micro-batch, which is H x W before it is resized to `result`, height and width."""
    random = np.random.Generator(np.random.Philox(key=key))
    mirrored = random.random(B) < cfg.flip
    operations, amounts = draw_rand_augment(cfg, B, H, W, random)
    nothing = np.empty((B, 0))
    three, sigma = draw_three_augment(B, random) if cfg.three_augment else (nothing.astype(np.int64), nothing)
    order, factors = (
        draw_color_jitter(B, cfg.color_jitter, random) if cfg.color_jitter else (nothing.astype(np.int64), nothing)
    )
    boxes = draw_erasing(B, *result, cfg.erasing, random) if cfg.erasing else nothing.astype(np.int64)
    draws = Draws(
        mirrored=mirrored,
        operations=operations,
        amounts=amounts,
        three_augment=three,
        sigma=sigma,
        jitter_order=order,
        jitter_factors=factors,
        boxes=boxes,
    )
    return draws, draw_mix(cfg, *result, random, mix_distance)


def join(draws: Sequence[Draws]) -> Draws:
    """The draws of several micro-batches, one after the other."""
    return Draws(**{name: np.concatenate([getattr(each, name) for each in draws]) for name in vars(draws[0])})
