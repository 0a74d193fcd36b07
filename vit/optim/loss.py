"""Training losses: cross-entropy with soft targets, and binary cross-entropy."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def training_loss(logits: Tensor, targets: Tensor, kind: Literal["cross-entropy", "bce"]) -> Tensor:
    """Mean loss over a micro-batch: (B, C) logits, (B, C) soft targets -> () float32.

    `bce` is the mean binary cross-entropy over images and classes.  Every class with a target above 0 counts as fully
    present (target 1), as in DeiT-III's training on mixed images (https://arxiv.org/abs/2204.07118, `engine.py`).
    """
    if kind == "bce":
        present = (targets > 0).float()
        return F.binary_cross_entropy_with_logits(logits.float(), present)
    return F.cross_entropy(logits, targets)
