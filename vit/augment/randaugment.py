"""RandAugment on whole batches of uint8 images.  Cubuk et al. 2019, https://arxiv.org/abs/1909.13719

As torchvision has it (its RandAugment on tensors, bilinear, filled with black; magnitudes 0 to 30):
https://github.com/pytorch/vision/blob/main/torchvision/transforms/autoaugment.py
and as timm has it for DeiT (`rand-m9-mstd0.5-inc1`: each operation done half of the time, at a magnitude of its own, 0
to 10, and filled with the mean): https://github.com/huggingface/pytorch-image-models/blob/main/timm/data/auto_augment.py
Each image of a batch has its own operation and its own amount of it, drawn on the host: images of one operation are run
together, and the host knows their number without asking the device.

Shapes: B images of a batch, n images of one operation, H, W pixels.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.pixel_ops import Color, Floats, Ints, Part, by_choice
from vit.config.schema import AugmentConfig

Operation = Callable[
    [Part, Floats, Color], None
]  # changes n images by the amounts (n,), filled from outside with a color

BINS = 31  # torchvision's magnitudes are 0 to 30
TIMMS_GREATEST = 10  # timm's go up to 10
BLACK = (0, 0, 0)

# Float32 ramps of torchvision's: a magnitude that differs in its last bit truncates some gray levels to others.
_SHEAR = torch.linspace(0.0, 0.3, BINS).tolist()  # pixels along one axis for each pixel along the other
_DEGREES = torch.linspace(0.0, 30.0, BINS).tolist()
_ENHANCE = torch.linspace(0.0, 0.9, BINS).tolist()  # the factor's distance from 1
_TRANSLATE = 150.0 / 331.0  # of the image's side, at the greatest magnitude


def draw(batch: int, random: np.random.Generator) -> tuple[Ints, Ints]:
    """torchvision's operation for each image, uniformly, and the sign: (B,) of 0 to 13, (B,) of -1 and 1."""
    return random.integers(len(TORCHVISIONS), size=batch), 2 * random.integers(2, size=batch) - 1


def amounts(op: Ints, magnitude: int, sign: Ints, H: int, W: int) -> Floats:
    """How much of its operation torchvision does to each image of H x W at a magnitude of 0 to 30: 2 x (B,) -> (B,)."""
    signed = {
        "ShearX": _SHEAR[magnitude],
        "ShearY": _SHEAR[magnitude],
        "TranslateX": math.floor(_TRANSLATE * W * magnitude / (BINS - 1)),
        "TranslateY": math.floor(_TRANSLATE * H * magnitude / (BINS - 1)),
        "Rotate": _DEGREES[magnitude],
    } | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), _ENHANCE[magnitude])
    same = {"Posterize": round(magnitude / ((BINS - 1) / 4)), "Solarize": 255 - 255 * magnitude / (BINS - 1)}
    table = [[-signed[n], signed[n]] if n in signed else [same.get(n, 0)] * 2 for n in TORCHVISIONS]
    return np.array(table, np.float64)[op, (sign > 0).astype(int)]


def draw_timms(batch: int, magnitude: int, deviation: float, random: np.random.Generator) -> tuple[Ints, Floats, Ints]:
    """timm's operation for each image, nothing half of the time; its magnitude, and the sign: 3 x (B,)."""
    op = np.array([_PLACE[name] for name in TIMMS])[random.integers(len(TIMMS), size=batch)]
    op[random.random(batch) >= 0.5] = _PLACE["Identity"]
    strength = (magnitude + deviation * random.standard_normal(batch)).clip(0, TIMMS_GREATEST)
    return op, strength, 2 * random.integers(2, size=batch) - 1


def timms_amounts(op: Ints, magnitude: Floats, sign: Ints, H: int, W: int) -> Floats:
    """How much of its operation timm does to each image of H x W at magnitudes of 0 to 10: 3 x (B,) -> (B,)."""
    share = magnitude / TIMMS_GREATEST
    signed = share * sign
    of = {
        "ShearX": 0.3 * signed,
        "ShearY": 0.3 * signed,
        "TranslateX": 0.45 * signed * W,
        "TranslateY": 0.45 * signed * H,
        "Rotate": 30 * signed,
        "Posterize": 4 + np.floor(4 * share),
        "Solarize": 256 - np.floor(256 * share),
        "SolarizeAdd": np.floor(110 * share),
    } | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9 * signed)
    return np.select([op == _PLACE[name] for name in of], list(of.values()), 0.0)


def apply(images: Tensor, op: Ints, amount: Floats, fill: Color = BLACK) -> Tensor:
    """Image i after amount[i] of operation op[i]: (B, 3, H, W) uint8 -> the same.  `images` may be overwritten."""
    run = list(OPERATIONS.values())
    return by_choice(images, op, lambda part, which, at: run[which](part, amount[at], fill))


def rand_augment(images: Tensor, cfg: AugmentConfig, random: np.random.Generator) -> Tensor:
    """The operations of a config, one after the other: (B, 3, H, W) uint8 -> the same.  `images` may be overwritten."""
    B, _, H, W = images.shape
    for _ in range(cfg.randaugment_ops):
        if cfg.randaugment == "timm":
            op, strength, sign = draw_timms(B, cfg.randaugment_magnitude, cfg.randaugment_deviation, random)
            red, green, blue = (round(255 * mean) for mean in cfg.mean)
            images = apply(images, op, timms_amounts(op, strength, sign, H, W), (red, green, blue))
        else:
            op, sign = draw(B, random)
            images = apply(images, op, amounts(op, cfg.randaugment_magnitude, sign, H, W))
    return images


# ------------------------------------------------------------------------------------------------- moved pixels


def _identity(part: Part, amount: Floats, fill: Color) -> None:
    pass


def _shear_x(part: Part, amount: Floats, fill: Color) -> None:
    """Pixels to the left for each pixel down, about the top left corner."""
    _warp(part, fill, shear_x=amount)


def _shear_y(part: Part, amount: Floats, fill: Color) -> None:
    _warp(part, fill, shear_y=amount)


def _translate_x(part: Part, amount: Floats, fill: Color) -> None:
    """Pixels to the right."""
    if _whole(amount):
        part.shift(np.stack((amount, 0 * amount), axis=1).astype(np.int64), fill)
    else:
        _warp(part, fill, shift_x=amount)


def _translate_y(part: Part, amount: Floats, fill: Color) -> None:
    if _whole(amount):
        part.shift(np.stack((0 * amount, amount), axis=1).astype(np.int64), fill)
    else:
        _warp(part, fill, shift_y=amount)


def _whole(amount: Floats) -> bool:
    return bool((amount == np.rint(amount)).all())


def _rotate(part: Part, amount: Floats, fill: Color) -> None:
    """Degrees anticlockwise about the center."""
    _warp(part, fill, degrees=amount)


def _warp(
    part: Part,
    fill: Color,
    *,
    shear_x: Floats | float = 0.0,
    shear_y: Floats | float = 0.0,
    shift_x: Floats | float = 0.0,
    shift_y: Floats | float = 0.0,
    degrees: Floats | float = 0.0,
) -> None:
    H, W = part.images.shape[2:]
    turns = np.broadcast_to(degrees, len(part)).tolist()
    cos, sin = (np.array([function(math.radians(turn)) for turn in turns]) for function in (math.cos, math.sin))
    rows = (
        *(cos, shear_x - sin, shear_x * (H / 2) - shift_x),
        *(cos, shear_y + sin, shear_y * (W / 2) - shift_y),
    )
    part.warp(np.stack([np.broadcast_to(row, len(part)) for row in rows], axis=1).astype(np.float64), fill)


# ----------------------------------------------------------------------------------- a blend with another picture


def _color(part: Part, amount: Floats, fill: Color) -> None:
    """Away from, or toward, its gray."""
    part.color(_from_one(amount))


def _sharpness(part: Part, amount: Floats, fill: Color) -> None:
    """Away from, or toward, its smoothed version."""
    part.sharpness(_from_one(amount))


def _from_one(amount: Floats) -> NDArray[np.float32]:
    """A factor's distance from 1 as it is once the factor has been rounded, as torchvision has it."""
    return ((1 + amount) - 1).astype(np.float32)


# --------------------------------------------------------------------------------- one table for each channel


def _brightness(part: Part, amount: Floats, fill: Color) -> None:
    """Away from, or toward, black."""
    _tables(part, _LEVELS * (1 + amount).astype(np.float32)[:, None])


def _contrast(part: Part, amount: Floats, fill: Color) -> None:
    """Away from, or toward, its mean gray."""
    mean = part.gray_sums().float() / part.images[0, 0].numel()  # of integers: exact in any order
    factor, away = (part.there(values)[..., 0, 0] for values in (1 + amount, amount))  # (n, 1)
    levels = _levels(part.images.device) * factor - mean[:, None] * away
    part.lookup(levels.clamp_(0, 255).to(torch.uint8)[:, None])


def _posterize(part: Part, amount: Floats, fill: Color) -> None:
    """Clears bits, the lowest ones."""
    mask = 256 - 2 ** amount.astype(np.int64)
    _tables(part, _LEVELS.astype(np.int64) & mask[:, None])


def _solarize(part: Part, amount: Floats, fill: Color) -> None:
    """Inverts what is as bright as a gray level, or brighter."""
    _tables(part, np.where(amount[:, None] <= _LEVELS, 255 - _LEVELS, _LEVELS))


def invert_from(part: Part, threshold: float) -> None:
    """Inverts what is as bright as the threshold, a gray level, or brighter."""
    _solarize(part, np.full(len(part), threshold), BLACK)


def _invert(part: Part, amount: Floats, fill: Color) -> None:
    invert_from(part, 0)


def _solarize_add(part: Part, amount: Floats, fill: Color) -> None:
    """Brightens what is in the darker half."""
    _tables(part, np.where(_LEVELS < 128, _LEVELS + amount[:, None], _LEVELS))


def _tables(part: Part, tables: NDArray[np.generic]) -> None:
    """Looks up tables that the host makes: (n, 256)."""
    levels = torch.from_numpy(tables.clip(0, 255).astype(np.uint8)[:, None])
    part.lookup(levels.to(part.images.device, non_blocking=True))


def _auto_contrast(part: Part, amount: Floats, fill: Color) -> None:
    """The darkest level to black and the brightest to white, in each channel."""
    low, high = (found[..., None].float() for found in part.extremes())  # (n, 3, 1)
    level = _levels(part.images.device)
    levels = torch.where(high > low, (level - low) * (255 / (high - low)), level)
    part.lookup(levels.clamp_(0, 255).to(torch.uint8))


def _equalize(part: Part, amount: Floats, fill: Color) -> None:
    """Pillow's table, in which each output level holds about as many pixels."""
    counts = part.histogram()  # (n, 3, 256)
    level = _levels(part.images.device)
    brightest = torch.where(counts > 0, level, 0).argmax(2, keepdim=True)  # the brightest level that occurs
    step = (part.images[0, 0].numel() - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    levels = torch.where(step > 0, (below + step // 2) // step.clamp(min=1), level)
    part.lookup(levels.clamp_(0, 255).to(torch.uint8))


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
_PLACE = {name: place for place, name in enumerate(OPERATIONS)}
TORCHVISIONS = list(OPERATIONS)[:14]  # in torchvision's order
TIMMS = [name for name in OPERATIONS if name != "Identity"]  # its _RAND_INCREASING_TRANSFORMS
