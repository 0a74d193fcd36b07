"""Pillow's antialiased resize in numpy: the reference for `vit/data/resize.h`."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.images import Pixels

BITS = 22  # fractional bits of Pillow's weights


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def cubic(x: float) -> float:
    """Keys's cubic with a = -1/2, in the form that Pillow computes."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


FILTERS = {  # Pillow's constant, support and weight function of each filter
    "bilinear": (Image.Resampling.BILINEAR, 1.0, triangle),
    "bicubic": (Image.Resampling.BICUBIC, 2.0, cubic),
}


def weights(
    size: int, S: int, start: float = 0.0, length: float | None = None, kind: str = "bilinear"
) -> NDArray[np.int64]:
    """Weights that resize `length` pixels, from `start` on, of `size` pixels to S pixels, as a matrix: (S, size)."""
    out = np.zeros((S, size), np.int64)
    scale = (length or size) / S
    _, support, weight = FILTERS[kind]
    wide = max(scale, 1.0)
    reach = support * wide
    for i in range(S):
        center = start + (i + 0.5) * scale
        low, high = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), size)
        exact = [weight((k - center + 0.5) * (1 / wide)) for k in range(low, high)]
        shares = [w / sum(exact) for w in exact]
        out[i, low:high] = [int((0.5 if w >= 0 else -0.5) + w * (1 << BITS)) for w in shares]
    return out


def weighted(pixels: Pixels, down: NDArray[np.int64], across: NDArray[np.int64]) -> Pixels:
    """Applies weights to the rows, rounds to 8 bits, then to the columns: (h, w, 3), (T, h), (S, w) -> (T, S, 3)."""
    half = 1 << (BITS - 1)
    rows = ((np.einsum("sw,hwc->hsc", across, pixels.astype(np.int64)) + half) >> BITS).clip(0, 255)
    return ((np.einsum("th,hsc->tsc", down, rows) + half) >> BITS).clip(0, 255).astype(np.uint8)


def resized(pixels: Pixels, S: int, kind: str = "bilinear") -> Pixels:
    """Resizes an image: (h, w, 3) -> (S, S, 3)."""
    return weighted(pixels, weights(pixels.shape[0], S, kind=kind), weights(pixels.shape[1], S, kind=kind))
