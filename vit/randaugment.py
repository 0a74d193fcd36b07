"""RandAugment on whole batches of uint8 images.  Cubuk et al. 2019, https://arxiv.org/abs/1909.13719

The 14 operations, magnitudes and signs of `torchvision.transforms.RandAugment` on tensors, bilinear, filled with black:
https://github.com/pytorch/vision/blob/main/torchvision/transforms/autoaugment.py
Each image of a batch has its own operation.  So every operation is a case of one of three passes over the whole batch,
and an image whose operation belongs to another pass comes through with its own bits: no loop, no data-dependent shape.

    warp     one affine resampling        ShearX ShearY TranslateX TranslateY Rotate
    enhance  a blend with grey or a blur  Color Sharpness
    remap    one table for each channel   Brightness Contrast Posterize Solarize AutoContrast Equalize

Shapes: B images, H, W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 31  # magnitudes are 0 to 30

# Float32 ramps of torchvision's: a magnitude that differs in its last bit truncates some grey levels to others.
_SHEAR = torch.linspace(0.0, 0.3, BINS).tolist()  # pixels along one axis for each pixel along the other
_DEGREES = torch.linspace(0.0, 30.0, BINS).tolist()
_ENHANCE = torch.linspace(0.0, 0.9, BINS).tolist()  # the factor's distance from 1
_POSTERIZE = (BINS - 1) / 4  # magnitudes for each bit that is cleared
_TRANSLATE = 150.0 / 331.0  # of the image's side, at the greatest magnitude

# An operation is its index here, torchvision's.  Not an enum: torch.compile takes `tensor == member` for False.
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness",
    "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip


def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An operation for each image, uniformly, and the sign of its magnitude: (B,) int64, (B,) float32 of -1 and 1."""
    op = torch.randint(len(OPERATIONS), (batch,), generator=generator, device=generator.device)
    sign = torch.randint(2, (batch,), generator=generator, device=generator.device) * 2.0 - 1.0
    return op, sign


def apply(images: Tensor, op: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Image i after operation op[i] at `magnitude`, 0 to 30, times sign[i]: (B, 3, H, W) uint8 -> the same."""
    # In parts, so that temporaries are small: on a CPU, about twice as fast as 64 images of 224 x 224 at once;
    # on a GPU, a few hundred MB of the memory that the model needs, not gigabytes.
    size = 16 if images.device.type == "cpu" else 128
    out = []
    for start in range(0, len(images), size):
        part, part_op, part_sign = (x[start : start + size] for x in (images, op, sign))
        for one_pass in (_warp, _enhance, _remap):
            part = one_pass(part, part_op, magnitude, part_sign)
        out.append(part)
    return torch.cat(out)


def _is(op: Tensor, name: str) -> Tensor:
    return op == OPERATIONS.index(name)


def _warp(images: Tensor, op: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Shears about the top left corner, translates by whole pixels, rotates anticlockwise about the centre."""
    H, W = images.shape[2:]

    def amount(name: str, magnitude: float) -> Tensor:
        return (sign * _is(op, name) * magnitude)[:, None, None]  # (B, 1, 1); 0 for other operations

    shear_x, shear_y = amount("ShearX", _SHEAR[magnitude]), amount("ShearY", _SHEAR[magnitude])
    shift_x = amount("TranslateX", math.floor(_TRANSLATE * W * magnitude / (BINS - 1)))
    shift_y = amount("TranslateY", math.floor(_TRANSLATE * H * magnitude / (BINS - 1)))
    angle = amount("Rotate", math.radians(_DEGREES[magnitude]))
    cos, sin = angle.cos(), angle.sin()

    # Where each pixel comes from, in pixels from the centre.  Not F.affine_grid: its matrix product may run in TF32.
    x = torch.arange(W, device=images.device) - (W - 1) / 2
    y = torch.arange(H, device=images.device)[:, None] - (H - 1) / 2
    from_x = cos * x + (shear_x - sin) * y + (shear_x * (H / 2) - shift_x)
    from_y = cos * y + (shear_y + sin) * x + (shear_y * (W / 2) - shift_y)
    grid = torch.stack((from_x * (2 / W), from_y * (2 / H)), dim=3)  # (B, H, W, 2), the image is [-1, 1]
    warped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.round_().to(torch.uint8)  # rounding gives an image that did not move its own bits


def _enhance(images: Tensor, op: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Moves an image away from, or towards, its grey or its smoothed version."""
    colour, sharpness = (_is(op, name)[:, None, None, None] for name in ("Color", "Sharpness"))
    amount = sign[:, None, None, None] * _ENHANCE[magnitude] * (colour | sharpness)  # 0 for other operations
    plain = torch.where(colour, _grey(images), _smooth(images))
    pixels = images.float()
    enhanced: Tensor = pixels + amount * (pixels - plain)  # in this form, a flat area stays exactly as it is
    return enhanced.clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Grey levels by torchvision's weights: (B, 3, H, W) uint8 -> (B, 1, H, W) uint8."""
    red, green, blue = images.unbind(1)
    grey: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return grey.to(torch.uint8)[:, None]


def _smooth(images: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels, the centre counted 5 times; the border stays: (B, 3, H, W) uint8 -> the same."""
    # In integers, so that it is exact: a convolution may run in TF32, or add in another order on another device.
    levels = images.to(torch.int16)
    rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * levels[..., 1:-1, 1:-1]
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = (box + 6) // 13  # to the nearest level; 13 is odd, so that there are no ties
    return smooth


def _remap(images: Tensor, op: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Looks each pixel up in its image's and channel's table of 256 levels."""
    index = images.flatten(2).long()  # (B, 3, H * W)
    level = torch.arange(256, dtype=torch.float32, device=images.device)
    amount = sign[:, None, None] * _ENHANCE[magnitude]  # (B, 1, 1)
    grey = (_grey(images).sum((1, 2, 3)) / index.shape[2])[:, None, None]  # of integers: the same in any order
    low, high = images.amin((2, 3))[..., None], images.amax((2, 3))[..., None]  # (B, 3, 1)
    tables = {
        "Brightness": level * (1 + amount),
        "Contrast": level * (1 + amount) - grey * amount,
        "Posterize": level - level % 2 ** round(magnitude / _POSTERIZE),
        "Solarize": torch.where(level >= 255 - 255 * magnitude / (BINS - 1), 255 - level, level),
        "AutoContrast": torch.where(high > low, (level - low) * (255 / (high - low)), level),
        "Equalize": _equalized(index, level),
    }
    table = level.expand(*index.shape[:2], 256)
    for name, levels in tables.items():
        table = torch.where(_is(op, name)[:, None, None], levels, table)
    return table.clamp(0, 255).to(torch.uint8).gather(2, index).view_as(images)


def _equalized(index: Tensor, level: Tensor) -> Tensor:
    """Pillow's table, in which each output level holds about as many pixels: (B, 3, H * W) -> (B, 3, 256) float32."""
    one = torch.ones((), dtype=torch.int32, device=index.device)
    counts = torch.zeros(*index.shape[:2], 256, dtype=torch.int32, device=index.device)
    counts.scatter_add_(2, index, one.expand_as(index))  # (B, 3, 256)
    brightest = counts.gather(2, index.amax(2, keepdim=True))  # pixels of the brightest level that occurs
    step = (index.shape[2] - brightest) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    return torch.where(step > 0, ((below + step // 2) // step.clamp(min=1)).float(), level)
