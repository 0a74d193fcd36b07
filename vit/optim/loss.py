"""What training minimizes: cross-entropy with soft targets, or each class decided by itself."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def training_loss(logits: Tensor, targets: Tensor, kind: Literal["cross-entropy", "bce"]) -> Tensor:
    """The mean over a micro-batch: (B, C), (B, C) soft targets -> () float32.

    `bce` is the binary cross-entropy of every class, its mean over the classes too, with each class that an image holds
    any share of as a right one: so DeiT-III (https://arxiv.org/abs/2204.07118, `engine.py`) trains on mixed images.
    """
    if kind == "bce":
        right = (targets > 0).float()
        return F.binary_cross_entropy_with_logits(logits.float(), right)
    return F.cross_entropy(logits, targets)
