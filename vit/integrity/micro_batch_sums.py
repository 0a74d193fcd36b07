"""Checksums of what is computed for one micro-batch: its samples, its images at each stage, and its gradient.

Shapes: m images, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.integrity.checksums import checksum, one_nan

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MicroBatchSums:
    """In the order in which they are computed, as int64 on any device."""

    samples: Tensor  # (m,) index of each sample in the file
    labels: Tensor  # (m,) their classes
    pixels: Tensor  # (m,) checksums of the decoded images
    images: Tensor  # (m,) checksums of the augmented images
    targets: Tensor  # (m,) checksums of the soft targets
    gradient: Tensor  # (P,) checksum of the gradient of each parameter

    def on_host(self) -> Tensor:
        """All of them, one after the other, on the CPU."""
        return torch.cat([getattr(self, field.name).cpu() for field in fields(self)])


WHAT = {
    "samples": "samples",
    "labels": "labels",
    "pixels": "decoded pixels",
    "images": "augmented images",
    "targets": "targets",
    "gradient": "gradient",
}


def first_difference(a: Tensor, b: Tensor, parameters: Sequence[str]) -> tuple[str, list[str]] | None:
    """What differs first between the sums of a micro-batch, and the names of its samples or parameters that differ.

    None if nothing does.  `a` and `b` are `on_host` of two `MicroBatchSums`.
    """
    images = len(WHAT) - 1
    sizes = [(len(a) - len(parameters)) // images] * images + [len(parameters)]
    names = [f"sample {sample}" for sample in a[: sizes[0]].tolist()]
    for what, x, y in zip(WHAT.values(), a.split(sizes), b.split(sizes), strict=True):
        differing = (x != y).nonzero().flatten().tolist()
        if differing:
            of = parameters if what == "gradient" else names
            return what, [of[i] for i in differing]
    return None


class GradientSums:
    """Checksums of the gradients of a micro-batch, which come for some parameters at a time."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self._sums: dict[Tensor, Tensor] = {}

    def add(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Adds the checksums of some gradients.  A gradient that is None has none."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                self._sums[parameter] = checksum([one_nan(gradient)], gradient.device)

    def sums(self) -> Tensor:
        """The checksums of all parameters, 0 for those without a gradient: (P,)."""
        none = torch.zeros((), dtype=torch.int64, device=self.parameters[0].device)
        return torch.stack([self._sums.get(parameter, none) for parameter in self.parameters])
