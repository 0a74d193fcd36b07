"""RandAugment on whole batches of uint8 images.  Cubuk et al. 2019, https://arxiv.org/abs/1909.13719

Two variants:

- torchvision, as its RandAugment on tensors: magnitudes 0 to 30, bilinear, filled with black,
  https://github.com/pytorch/vision/blob/main/torchvision/transforms/autoaugment.py
- timm, as in DeiT's recipe (`rand-m9-mstd0.5-inc1`): each operation is applied with probability 1/2, at a random
  magnitude of 0 to 10, filled with the mean,
  https://github.com/huggingface/pytorch-image-models/blob/main/timm/data/auto_augment.py

Each image of a batch has its own operation and amount.  They are drawn on the host, which groups the images by
operation without synchronizing with the device.

Shapes: B images of a batch, n images with the same operation, H, W pixels.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.pixel_ops import Color, Floats, Ints, Selection, apply_by_choice
from vit.config.sections import AugmentConfig

# Changes n images in place, by an amount for each (n,); the color fills the area outside of the image.
Operation = Callable[[Selection, Floats, Color], None]

BINS = 31  # torchvision's magnitudes are 0 to 30
TIMM_MAX_MAGNITUDE = 10
BLACK = (0, 0, 0)

# torchvision's float32 tables.  In float64 the last bits would differ, and some levels would be truncated differently.
_SHEAR = torch.linspace(0.0, 0.3, BINS).tolist()  # pixels along one axis per pixel along the other
_DEGREES = torch.linspace(0.0, 30.0, BINS).tolist()
_ENHANCE = torch.linspace(0.0, 0.9, BINS).tolist()  # |factor - 1|
_TRANSLATE = 150.0 / 331.0  # share of the image's side at the largest magnitude


def draw_torchvision(batch: int, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Draws torchvision's operation, uniformly, and sign for each image: (B,) of 0 to 13, (B,) of -1 and 1."""
    return random.integers(len(TORCHVISION_OPERATIONS), size=batch), 2 * random.integers(2, size=batch) - 1


def torchvision_amounts(op: Ints, magnitude: int, sign: Ints, H: int, W: int) -> Floats:
    """torchvision's amount of each image's operation at a magnitude of 0 to 30: 2 x (B,) -> (B,)."""
    signed = {
        "ShearX": _SHEAR[magnitude],
        "ShearY": _SHEAR[magnitude],
        "TranslateX": math.floor(_TRANSLATE * W * magnitude / (BINS - 1)),
        "TranslateY": math.floor(_TRANSLATE * H * magnitude / (BINS - 1)),
        "Rotate": _DEGREES[magnitude],
    } | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), _ENHANCE[magnitude])
    unsigned = {"Posterize": round(magnitude / ((BINS - 1) / 4)), "Solarize": 255 - 255 * magnitude / (BINS - 1)}
    table = [[-signed[n], signed[n]] if n in signed else [unsigned.get(n, 0)] * 2 for n in TORCHVISION_OPERATIONS]
    return np.array(table, np.float64)[op, (sign > 0).astype(int)]


def draw_timm(batch: int, magnitude: int, deviation: float, random: np.random.Generator) -> tuple[Ints, Floats, Ints]:
    """Draws timm's operation, "Identity" with probability 1/2, magnitude and sign for each image: 3 x (B,)."""
    op = np.array([_INDEX[name] for name in TIMM_OPERATIONS])[random.integers(len(TIMM_OPERATIONS), size=batch)]
    op[random.random(batch) >= 0.5] = _INDEX["Identity"]
    magnitudes = (magnitude + deviation * random.standard_normal(batch)).clip(0, TIMM_MAX_MAGNITUDE)
    return op, magnitudes, 2 * random.integers(2, size=batch) - 1


def timm_amounts(op: Ints, magnitude: Floats, sign: Ints, H: int, W: int) -> Floats:
    """timm's amount of each image's operation at magnitudes of 0 to 10: 3 x (B,) -> (B,)."""
    share = magnitude / TIMM_MAX_MAGNITUDE
    signed = share * sign
    amount = {
        "ShearX": 0.3 * signed,
        "ShearY": 0.3 * signed,
        "TranslateX": 0.45 * signed * W,
        "TranslateY": 0.45 * signed * H,
        "Rotate": 30 * signed,
        "Posterize": 4 + np.floor(4 * share),
        "Solarize": 256 - np.floor(256 * share),
        "SolarizeAdd": np.floor(110 * share),
    } | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9 * signed)
    return np.select([op == _INDEX[name] for name in amount], list(amount.values()), 0.0)


def apply(images: Tensor, op: Ints, amount: Floats, fill: Color = BLACK) -> Tensor:
    """Applies operation op[i] with amount[i] to image i: (B, 3, H, W) uint8 -> the same.  May overwrite `images`."""
    operations = list(OPERATIONS.values())
    return apply_by_choice(images, op, lambda selection, i, indices: operations[i](selection, amount[indices], fill))


def draw_rand_augment(cfg: AugmentConfig, B: int, H: int, W: int, random: np.random.Generator) -> tuple[Ints, Floats]:
    """Draws the operations of each image, in their order, and their amounts: 2 x (B, randaugment_ops)."""
    operations, amounts = np.empty((B, cfg.randaugment_ops), np.int64), np.empty((B, cfg.randaugment_ops))
    for k in range(cfg.randaugment_ops):
        if cfg.randaugment == "timm":
            op, magnitude, sign = draw_timm(B, cfg.randaugment_magnitude, cfg.randaugment_deviation, random)
            operations[:, k], amounts[:, k] = op, timm_amounts(op, magnitude, sign, H, W)
        else:
            op, sign = draw_torchvision(B, random)
            operations[:, k], amounts[:, k] = op, torchvision_amounts(op, cfg.randaugment_magnitude, sign, H, W)
    return operations, amounts


def rand_augment(images: Tensor, operations: Ints, amounts: Floats, cfg: AugmentConfig) -> Tensor:
    """Applies drawn operations: (B, 3, H, W) uint8, 2 x (B, ops) -> the images.  May overwrite `images`."""
    red, green, blue = (round(255 * mean) for mean in cfg.mean)
    fill = (red, green, blue) if cfg.randaugment == "timm" else BLACK
    for k in range(operations.shape[1]):
        images = apply(images, operations[:, k], amounts[:, k], fill)
    return images


# ------------------------------------------------------------------------------------------ geometric operations


def _identity(selection: Selection, amount: Floats, fill: Color) -> None:
    pass


def _shear_x(selection: Selection, amount: Floats, fill: Color) -> None:
    """Amounts in pixels to the left per pixel down; the top left corner stays."""
    _warp(selection, fill, shear_x=amount)


def _shear_y(selection: Selection, amount: Floats, fill: Color) -> None:
    _warp(selection, fill, shear_y=amount)


def _translate_x(selection: Selection, amount: Floats, fill: Color) -> None:
    """Amounts in pixels to the right."""
    if _all_integers(amount):
        selection.shift(np.stack((amount, 0 * amount), axis=1).astype(np.int64), fill)
    else:
        _warp(selection, fill, shift_x=amount)


def _translate_y(selection: Selection, amount: Floats, fill: Color) -> None:
    """Amounts in pixels down."""
    if _all_integers(amount):
        selection.shift(np.stack((0 * amount, amount), axis=1).astype(np.int64), fill)
    else:
        _warp(selection, fill, shift_y=amount)


def _all_integers(amount: Floats) -> bool:
    return bool((amount == np.rint(amount)).all())


def _rotate(selection: Selection, amount: Floats, fill: Color) -> None:
    """Amounts in degrees counterclockwise about the center."""
    _warp(selection, fill, degrees=amount)


def _warp(
    selection: Selection,
    fill: Color,
    *,
    shear_x: Floats | float = 0.0,
    shear_y: Floats | float = 0.0,
    shift_x: Floats | float = 0.0,
    shift_y: Floats | float = 0.0,
    degrees: Floats | float = 0.0,
) -> None:
    H, W = selection.images.shape[2:]
    angles = [math.radians(angle) for angle in np.broadcast_to(degrees, len(selection)).tolist()]
    cos, sin = (np.array([function(angle) for angle in angles]) for function in (math.cos, math.sin))
    rows = (
        *(cos, shear_x - sin, shear_x * (H / 2) - shift_x),
        *(cos, shear_y + sin, shear_y * (W / 2) - shift_y),
    )
    selection.warp(np.stack([np.broadcast_to(row, len(selection)) for row in rows], axis=1).astype(np.float64), fill)


# ------------------------------------------------------------------------------------------ blends with another image


def _color(selection: Selection, amount: Floats, fill: Color) -> None:
    """Blends with the grayscale image; amounts are the factor minus 1."""
    selection.color(_rounded(amount))


def _sharpness(selection: Selection, amount: Floats, fill: Color) -> None:
    """Blends with the smoothed image; amounts are the factor minus 1."""
    selection.sharpness(_rounded(amount))


def _rounded(amount: Floats) -> NDArray[np.float32]:
    """The amount after rounding the factor 1 + amount, as torchvision does."""
    return ((1 + amount) - 1).astype(np.float32)


# ------------------------------------------------------------------------------------------ lookup tables


def _brightness(selection: Selection, amount: Floats, fill: Color) -> None:
    """Blends with black; amounts are the factor minus 1."""
    _lookup(selection, _LEVELS * (1 + amount).astype(np.float32)[:, None])


def _contrast(selection: Selection, amount: Floats, fill: Color) -> None:
    """Blends with the mean gray level; amounts are the factor minus 1."""
    mean = selection.gray_sums().float() / selection.images[0, 0].numel()  # a sum of integers: exact in any order
    factor, minus_one = (selection.to_device(values)[..., 0, 0] for values in (1 + amount, amount))  # (n, 1)
    levels = _levels(selection.images.device) * factor - mean[:, None] * minus_one
    selection.lookup(levels.clamp_(0, 255).to(torch.uint8)[:, None])


def _posterize(selection: Selection, amount: Floats, fill: Color) -> None:
    """Clears the `amount` lowest bits."""
    mask = 256 - 2 ** amount.astype(np.int64)
    _lookup(selection, _LEVELS.astype(np.int64) & mask[:, None])


def _solarize(selection: Selection, amount: Floats, fill: Color) -> None:
    """Inverts levels at or above the amount."""
    _lookup(selection, np.where(amount[:, None] <= _LEVELS, 255 - _LEVELS, _LEVELS))


def invert_from(selection: Selection, threshold: float) -> None:
    """Inverts levels at or above the threshold."""
    _solarize(selection, np.full(len(selection), threshold), BLACK)


def _invert(selection: Selection, amount: Floats, fill: Color) -> None:
    invert_from(selection, 0)


def _solarize_add(selection: Selection, amount: Floats, fill: Color) -> None:
    """Adds the amount to levels below 128."""
    _lookup(selection, np.where(_LEVELS < 128, _LEVELS + amount[:, None], _LEVELS))


def _lookup(selection: Selection, tables: NDArray[np.generic]) -> None:
    """Applies lookup tables computed on the host: (n, 256)."""
    levels = torch.from_numpy(tables.clip(0, 255).astype(np.uint8)[:, None])
    selection.lookup(levels.to(selection.images.device, non_blocking=True))


def _auto_contrast(selection: Selection, amount: Floats, fill: Color) -> None:
    """Stretches the levels of each channel to 0 to 255."""
    low, high = (found[..., None].float() for found in selection.extremes())  # (n, 3, 1)
    level = _levels(selection.images.device)
    levels = torch.where(high > low, (level - low) * (255 / (high - low)), level)
    selection.lookup(levels.clamp_(0, 255).to(torch.uint8))


def _equalize(selection: Selection, amount: Floats, fill: Color) -> None:
    """Histogram equalization of each channel, as in Pillow."""
    counts = selection.histogram()  # (n, 3, 256)
    level = _levels(selection.images.device)
    brightest = torch.where(counts > 0, level, 0).argmax(2, keepdim=True)  # highest level that occurs
    step = (selection.images[0, 0].numel() - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    levels = torch.where(step > 0, (below + step // 2) // step.clamp(min=1), level)
    selection.lookup(levels.clamp_(0, 255).to(torch.uint8))


_LEVELS = np.arange(256, dtype=np.float32)


@functools.cache
def _levels(device: torch.device) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=device)


OPERATIONS: dict[str, Operation] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "SolarizeAdd": _solarize_add,
}
_INDEX = {name: index for index, name in enumerate(OPERATIONS)}
TORCHVISION_OPERATIONS = list(OPERATIONS)[:14]  # in torchvision's order
TIMM_OPERATIONS = [name for name in OPERATIONS if name != "Identity"]  # timm's _RAND_INCREASING_TRANSFORMS
