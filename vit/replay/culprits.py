"""Which images of a micro-batch make a pass fail: images are tried alone, among images that are the mean color.

No image of a micro-batch affects the activations of another one, but gradients of weights are sums over all of them.
Images that mixup or CutMix has mixed are tried apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vit.augment.mixup import Mix

Fails = Callable[[Tensor, Tensor], bool]  # whether a pass with these images and targets is not finite

# Which of the two images of a mixed one fail when they are alone.
Apart = Literal["own", "partner", "both", "neither"]


@dataclass(frozen=True)
class Culprit:
    """An image of a micro-batch that makes its pass fail."""

    row: int
    partner: int | None  # row of the image that is mixed into it
    apart: Apart | None  # if it is mixed


def failing_rows(images: Tensor, targets: Tensor, fails: Fails) -> list[int] | None:
    """The rows of a micro-batch that fail, each alone or, if none does, together; None if even no image fails.

    (m, 3, S, S), (m, C).  About log2(m) passes for each failing row.
    """

    def only(rows: Sequence[int]) -> Tensor:
        kept = torch.zeros_like(images)  # normalized: 0 is the mean color
        kept[list(rows)] = images[list(rows)]
        return kept

    def search(rows: Sequence[int]) -> list[int]:
        if not fails(only(rows), targets):
            return []
        if len(rows) == 1:
            return list(rows)
        middle = len(rows) // 2
        return search(rows[:middle]) + search(rows[middle:]) or list(rows)

    return None if fails(only([]), targets) else search(range(len(images)))


def tell_apart(rows: Sequence[int], mix: Mix | None, unmixed: tuple[Tensor, Tensor], fails: Fails) -> list[Culprit]:
    """Whether a mixed image fails because of its own pixels or because of those that are mixed into it.

    `unmixed`: images and targets of the micro-batch before they were mixed.
    """
    if mix is None or mix.lam == 1:
        return [Culprit(row, None, None) for row in rows]
    images, targets = unmixed
    out, known = [], dict[int, bool]()

    def alone(row: int) -> bool:
        if row not in known:
            kept = torch.zeros_like(images)
            kept[row] = images[row]
            known[row] = fails(kept, targets)
        return known[row]

    for row in rows:
        partner = (row - mix.distance) % len(images)
        which: dict[tuple[bool, bool], Apart] = {
            (True, True): "both",
            (True, False): "own",
            (False, True): "partner",
            (False, False): "neither",
        }
        out.append(Culprit(row, partner, which[alone(row), alone(partner)]))
    return out
