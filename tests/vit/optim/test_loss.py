"""The training losses agree with PyTorch, timm and DeiT-III."""

import timm.loss
import torch
import torch.nn.functional as F
from torch import nn

from vit.optim.loss import training_loss


def test_bce_treats_every_class_in_a_mixed_image_as_present() -> None:
    """As DeiT-III: `targets.gt(0.0)`, then PyTorch's BCEWithLogitsLoss over images and classes."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    targets = F.one_hot(torch.tensor([0, 2, 5, 5]), 6) * 0.3 + F.one_hot(torch.tensor([1, 2, 0, 4]), 6) * 0.7
    expected = nn.BCEWithLogitsLoss()(logits, targets.gt(0.0).type(targets.dtype))
    assert training_loss(logits, targets, "bce") == expected
    half = logits.bfloat16()
    assert training_loss(half, targets, "bce") == training_loss(half.float(), targets, "bce")  # computed in float32


def test_cross_entropy_with_soft_targets_is_that_of_timm() -> None:
    """timm's SoftTargetCrossEntropy: the mean over images of -sum(target * log_softmax)."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    expected = timm.loss.SoftTargetCrossEntropy()(logits, targets)
    torch.testing.assert_close(training_loss(logits, targets, "cross-entropy"), expected)
