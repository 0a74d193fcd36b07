"""RandAugment on whole batches of uint8 images.  Cubuk et al. 2019, https://arxiv.org/abs/1909.13719

The 14 operations, magnitudes and signs of `torchvision.transforms.RandAugment` on tensors, bilinear, filled with black:
https://github.com/pytorch/vision/blob/main/torchvision/transforms/autoaugment.py
Each image of a batch has its own operation, drawn on the host: images of one operation are run together, and the host
knows their number without asking the device.

Shapes: n images of one operation, H, W pixels.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BINS = 31  # magnitudes are 0 to 30

# Float32 ramps of torchvision's: a magnitude that differs in its last bit truncates some grey levels to others.
_SHEAR = torch.linspace(0.0, 0.3, BINS).tolist()  # pixels along one axis for each pixel along the other
_DEGREES = torch.linspace(0.0, 30.0, BINS).tolist()
_ENHANCE = torch.linspace(0.0, 0.9, BINS).tolist()  # the factor's distance from 1
_POSTERIZE = (BINS - 1) / 4  # magnitudes for each bit that is cleared
_TRANSLATE = 150.0 / 331.0  # of the image's side, at the greatest magnitude

Operation = Callable[[Tensor, int, int], Tensor]  # (n, 3, H, W) uint8, magnitude 0 to 30, sign -1 or 1 -> the same


def draw(batch: int, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An operation for each image, uniformly, and the sign of its magnitude: (B,) of 0 to 13, (B,) of -1 and 1."""
    return random.integers(len(OPERATIONS), size=batch), 2 * random.integers(2, size=batch) - 1


def apply(images: Tensor, op: NDArray[np.int64], magnitude: int, sign: NDArray[np.int64]) -> Tensor:
    """Image i after operation op[i] at `magnitude`, 0 to 30, times sign[i]: (B, 3, H, W) uint8 -> the same."""
    run = list(OPERATIONS.values())
    return by_choice(
        images, 2 * op + (sign > 0), lambda part, case, _: run[case // 2](part, magnitude, case % 2 * 2 - 1)
    )


def by_choice(
    images: Tensor, choice: NDArray[np.int64], run: Callable[[Tensor, int, NDArray[np.int64]], Tensor]
) -> Tensor:
    """Images of each choice as `run(images, choice, indices)` makes them, in their places: (B, ...) -> the same."""
    order = np.argsort(choice, kind="stable")
    there, back = torch.from_numpy(np.stack((order, np.argsort(order)))).to(images.device, non_blocking=True)
    together = images.index_select(0, there)  # copies whole images, where images[there] would go from pixel to pixel
    edges = np.flatnonzero(np.diff(choice[order], prepend=-1, append=-1)).tolist()
    for start, stop in itertools.pairwise(edges):
        for part in pieces(start, stop, images.device):
            together[part] = run(together[part], int(choice[order[start]]), order[part])
    return together.index_select(0, back)


def pieces(start: int, stop: int, device: torch.device) -> list[slice]:
    """A range of images, a few at a time on a CPU, whose cache then holds their temporaries: twice as fast."""
    size = 4 if device.type == "cpu" else stop - start
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


# ------------------------------------------------------------------------------------- one affine resampling each


def _identity(images: Tensor, magnitude: int, sign: int) -> Tensor:
    return images


def _shear_x(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """About the top left corner."""
    return _warp(images, shear_x=sign * _SHEAR[magnitude])


def _shear_y(images: Tensor, magnitude: int, sign: int) -> Tensor:
    return _warp(images, shear_y=sign * _SHEAR[magnitude])


def _translate_x(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """By whole pixels."""
    return _warp(images, shift_x=sign * math.floor(_TRANSLATE * images.shape[3] * magnitude / (BINS - 1)))


def _translate_y(images: Tensor, magnitude: int, sign: int) -> Tensor:
    return _warp(images, shift_y=sign * math.floor(_TRANSLATE * images.shape[2] * magnitude / (BINS - 1)))


def _rotate(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """Anticlockwise about the centre."""
    return _warp(images, degrees=sign * _DEGREES[magnitude])


def _warp(
    images: Tensor, *, shear_x: float = 0, shear_y: float = 0, shift_x: int = 0, shift_y: int = 0, degrees: float = 0
) -> Tensor:
    H, W = images.shape[2:]
    taps = _taps(H, W, shear_x, shear_y, shift_x, shift_y, degrees, images.device)
    flat = F.pad(images.view(-1, H * W), (0, 1))  # (n * 3, H * W + 1); the last one is black
    pixels = [flat.gather(1, place.expand(len(flat), -1)) for place, _ in taps]
    if len(taps) == 1:
        return pixels[0].view_as(images)
    total = torch.zeros(pixels[0].shape, device=images.device)
    for each, (_, weight) in zip(pixels, taps, strict=True):
        total.addcmul_(each.float(), weight)
    return total.round_().to(torch.uint8).view_as(images)


@functools.lru_cache(maxsize=64)  # a shard's images share them, and so do all shards of a recipe
def _taps(
    H: int, W: int, shear_x: float, shear_y: float, shift_x: int, shift_y: int, degrees: float, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Up to four pixels that each pixel is made of: their places, H * W for black, and weights; 2 x (H * W,) each."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = np.arange(W) - (W - 1) / 2, np.arange(H)[:, None] - (H - 1) / 2  # from the centre
    from_x = cos * x + (shear_x - sin) * y + (shear_x * (H / 2) - shift_x) + (W - 1) / 2
    from_y = cos * y + (shear_y + sin) * x + (shear_y * (W / 2) - shift_y) + (H - 1) / 2
    left, top = np.floor(from_x + 1e-9), np.floor(from_y + 1e-9)  # whole pixels stay whole
    taps = []
    for column, across in ((left, left + 1 - from_x), (left + 1, from_x - left)):
        for row, down in ((top, top + 1 - from_y), (top + 1, from_y - top)):
            inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
            place = np.where(inside, row * W + column, H * W).astype(np.int64)
            weight = (across * down).clip(0, 1)
            if weight.max() > 1e-6:
                taps.append((place.ravel(), weight.astype(np.float32).ravel()))
    return [(torch.from_numpy(p).to(device), torch.from_numpy(w).to(device)) for p, w in taps]


# ----------------------------------------------------------------------------------- a blend with another picture


def _color(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """Away from, or towards, its grey."""
    return blend(images, grey(images), 1 + sign * _ENHANCE[magnitude])


def _sharpness(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """Away from, or towards, its smoothed version."""
    return blend(images, _smooth(images), 1 + sign * _ENHANCE[magnitude])


def blend(images: Tensor, other: Tensor, factor: float | Tensor) -> Tensor:
    """`factor` of the images and the rest of `other`, which broadcasts: (n, 3, H, W) uint8 -> the same."""
    pixels = images.float()
    difference = (pixels - other.float()).mul_(factor - 1)  # in this form, a flat area stays exactly as it is
    return pixels.add_(difference).clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Grey levels by torchvision's weights: (n, 3, H, W) uint8 -> (n, 1, H, W) uint8."""
    red, green, blue = images.float().unbind(1)
    levels: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return levels.to(torch.uint8)[:, None]


def _smooth(images: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels, the centre counted 5 times; the border stays: (n, 3, H, W) uint8 -> the same."""
    # Sums of whole numbers, so that it is exact: a convolution may run in TF32, or add in another order elsewhere.
    levels = images.float()
    rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    box = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(levels[..., 1:-1, 1:-1], alpha=4)
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = box.add_(6.5).mul_(1 / 13)  # truncated to the nearest level; 13 is odd: there are no ties
    return smooth


# --------------------------------------------------------------------------------- one table for each channel


def _brightness(images: Tensor, magnitude: int, sign: int) -> Tensor:
    return lookup(images, _levels(images.device) * (1 + sign * _ENHANCE[magnitude]))


def _contrast(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """Away from, or towards, its mean grey."""
    amount = sign * _ENHANCE[magnitude]
    mean = grey(images).sum((1, 2, 3), keepdim=True).float() / images[0, 0].numel()  # of integers: exact in any order
    return lookup(images, _levels(images.device) * (1 + amount) - mean[:, 0] * amount)


def _posterize(images: Tensor, magnitude: int, sign: int) -> Tensor:
    return images & (256 - 2 ** round(magnitude / _POSTERIZE))


def _solarize(images: Tensor, magnitude: int, sign: int) -> Tensor:
    return invert_from(images, 255 - 255 * magnitude / (BINS - 1))


def invert_from(images: Tensor, threshold: float) -> Tensor:
    """Inverts what is as bright as the threshold, a grey level, or brighter: (n, 3, H, W) uint8 -> the same."""
    level = _levels(images.device)
    return lookup(images, torch.where(level >= threshold, 255 - level, level))


def _auto_contrast(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """The darkest level to black and the brightest to white, in each channel."""
    low, high = images.amin((2, 3))[..., None].float(), images.amax((2, 3))[..., None].float()  # (n, 3, 1)
    level = _levels(images.device)
    return lookup(images, torch.where(high > low, (level - low) * (255 / (high - low)), level))


def _equalize(images: Tensor, magnitude: int, sign: int) -> Tensor:
    """Pillow's table, in which each output level holds about as many pixels."""
    index = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int32, device=images.device)
    counts = torch.zeros(*index.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, index, one.expand_as(index))  # (n, 3, 256)
    brightest = counts.gather(2, images.amax((2, 3)).long()[..., None])  # pixels of the brightest level that occurs
    step = (index.shape[2] - brightest) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    return lookup(images, torch.where(step > 0, (below + step // 2) // step.clamp(min=1), _levels(images.device)))


def lookup(images: Tensor, table: Tensor) -> Tensor:
    """Each pixel's entry in its table: (n, 3, H, W) uint8, (256,), (n, 1, 256) or (n, 3, 256) float -> (n, 3, H, W)."""
    rows = table.clamp(0, 255).to(torch.uint8).expand(*images.shape[:2], 256)
    return rows.gather(2, images.flatten(2).long()).view_as(images)


@functools.cache
def _levels(device: torch.device) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=device)


# In torchvision's order.
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
}
