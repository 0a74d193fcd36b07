"""Resizing of batches by Pillow's Lanczos filter: the bytes of `Image.resize(size, LANCZOS)` on every device.

Pillow's weights are multiples of 2**-22, and it rounds to 8 bits after each of its two passes.  On a CPU this is done
in C++ (`vit/data/resize.h`).  Elsewhere each pass is a matrix product in float64.  All products and sums are multiples
of 2**-22 below 2**10, so they are exact, in any order.

Shapes: B images, S side of the images, s side of the result, in pixels.
"""

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.pixel_ops import native_library

_BITS = 22  # fractional bits of a weight
_LOBES = 3
_CHUNK = 64  # images resized together, which take eight times their memory in float64


def resize(images: Tensor, side: int) -> Tensor:
    """Resizes square images: (B, 3, S, S) uint8 -> (B, 3, s, s) uint8; the images themselves if they have this side."""
    B, _, S, width = images.shape
    assert width == S, "Pillow may resize the columns of other images first"
    if side == S:
        return images
    out = torch.empty(B, 3, side, side, dtype=torch.uint8, device=images.device)
    if library := native_library(images):
        library.vit_lanczos(images.data_ptr(), B, S, side, out.data_ptr())
        return out
    weights = _weights_on(S, side, images.device)
    for part, resized in zip(images.split(_CHUNK), out.split(_CHUNK), strict=True):
        rows = (part.double() @ weights.T).add_(0.5).clamp_(0, 255).floor_()  # (n, 3, S, s)
        resized.copy_((weights @ rows).add_(0.5).clamp_(0, 255))  # rounded down by the conversion to uint8
    return out


@functools.cache  # copied once per device
def _weights_on(S: int, side: int, device: torch.device) -> Tensor:
    return torch.from_numpy(integer_weights(S, side) / 2**_BITS).to(device, non_blocking=True)


def integer_weights(S: int, side: int) -> NDArray[np.float64]:
    """The weight of each of S input pixels in each of `side` output pixels, in units of 2**-22: (s, S).

    https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
    """
    out = np.zeros((side, S))
    scale = S / side
    wide = max(1.0, scale)
    support, inverse = _LOBES * wide, 1.0 / wide
    for i in range(side):
        center = (i + 0.5) * scale
        low, high = max(0, int(center - support + 0.5)), min(S, int(center + support + 0.5))
        exact = [_filter((k - center + 0.5) * inverse) for k in range(low, high)]
        total = functools.reduce(float.__add__, exact)  # one after the other, as Pillow; `sum` is more exact
        for k, weight in enumerate(exact, low):
            out[i, k] = int(math.copysign(0.5, weight) + weight / total * 2**_BITS)
    return out


def _filter(x: float) -> float:
    return _sinc(x) * _sinc(x / _LOBES) if -_LOBES <= x < _LOBES else 0.0


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0
