"""Mixup, CutMix and label smoothing: distributions, and targets that match the pixels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from tests.helpers.images import micro_batch
from tests.helpers.statistics import KS_LIMIT, generator, ks_distance
from vit.augment.mixup import Mix, draw_mix
from vit.augment.pipeline import augment
from vit.config.sections import AugmentConfig

# Normalization changes nothing: the outputs are levels from 0 to 255.
LEVELS = AugmentConfig(flip=0.0, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
BETA_CDF = {  # distribution functions of Beta(alpha, alpha) that have a closed form
    0.5: lambda x: 2 / math.pi * np.arcsin(np.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
}


@pytest.mark.parametrize("alpha", BETA_CDF)
def test_lambda_of_mixup_is_beta_distributed(alpha: float) -> None:
    """Beta(alpha, alpha), with mixup alone, and with CutMix in half of the micro-batches."""
    for cutmix in (0.0, 1.0):
        mixes = [draw_mix(AugmentConfig(mixup=alpha, cutmix=cutmix), 32, 32, generator(key)) for key in range(4000)]
        lambdas = np.array([mix.lam for mix in mixes if mix and mix.box is None])
        assert abs(len(lambdas) - (2000 if cutmix else 4000)) < (4 * math.sqrt(1000) if cutmix else 1)
        assert ks_distance(lambdas, BETA_CDF[alpha]) < KS_LIMIT


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_of_cutmix_are_distributed_as_in_torchvision(alpha: float) -> None:
    """The area and each edge of the box, in images that are not square."""
    H, W = 96, 224
    mixes = [draw_mix(AugmentConfig(cutmix=alpha), H, W, generator(key)) for key in range(2000)]
    cases = [(mix.lam, *mix.box) for mix in mixes if mix and mix.box]
    assert len(cases) == 2000
    torch.manual_seed(0)
    cutmix = v2.CutMix(alpha=alpha, num_classes=10)
    reference = []
    for _ in range(2000):
        drawn = cutmix.make_params([torch.empty(1, 3, H, W)])
        left, top, right, bottom = drawn["box"]
        reference.append((drawn["lam_adjusted"], top, bottom, left, right))
    for mine, theirs in zip(np.array(cases).T, np.array(reference).T, strict=True):
        assert ks_distance(mine, theirs) < KS_LIMIT


def mixed_micro_batch(cfg: AugmentConfig, key: int) -> tuple[Mix, Tensor, Tensor, Tensor]:
    """Mixes eight images of a single level and a class each: returns the draw, the levels, the images, the targets."""
    levels = 20 * torch.arange(1, 9)
    images = levels.to(torch.uint8)[:, None, None, None].expand(8, 30, 50, 3)
    out, targets = augment(images, torch.arange(8), cfg, 8, key)
    random = generator(key)
    random.random(8)  # skips the draw of the flips
    mix = draw_mix(cfg, 30, 50, random)
    assert mix
    return mix, levels, out, targets


def test_mixup_mixes_pixels_and_targets_in_the_same_proportion() -> None:
    """Each image with the previous one, whose share of the target is its share of every pixel."""
    for key in range(10):
        mix, levels, out, targets = mixed_micro_batch(replace(LEVELS, mixup=1.0), key)
        assert torch.equal(targets.diagonal(), torch.full((8,), mix.lam))
        assert torch.allclose(targets.diagonal(-1), torch.tensor(1 - mix.lam))
        torch.testing.assert_close(out, (targets @ levels.float())[:, None, None, None].expand_as(out))


def test_the_target_of_cutmix_has_the_share_of_the_pixels() -> None:
    """Counted in the result: lambda is corrected for a box that is clipped at the border or rounded to pixels."""
    shares = set()
    for key in range(30):
        mix, levels, out, targets = mixed_micro_batch(replace(LEVELS, cutmix=1.0), key)
        assert mix.box
        own = out == levels[:, None, None, None]
        other = out == levels.roll(1)[:, None, None, None]
        assert (own ^ other).all()
        top, bottom, left, right = mix.box
        assert other[:, :, top:bottom, left:right].all()
        for share, pixels in ((targets.diagonal(), own), (targets.diagonal(-1), other[1:])):
            torch.testing.assert_close(share, pixels.float().mean((1, 2, 3)), rtol=0, atol=1e-6)
        shares.add(mix.lam)
    assert len(shares) > 20


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_gives_the_loss_of_torch(smoothing: float) -> None:
    """The soft targets give the same loss as F.cross_entropy(..., label_smoothing=...) of the labels."""
    images, labels = micro_batch()
    _, targets = augment(images, labels, AugmentConfig(label_smoothing=smoothing), 10, 0)
    logits = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        F.cross_entropy(logits, targets), F.cross_entropy(logits, labels, label_smoothing=smoothing)
    )


def test_targets_sum_to_one() -> None:
    """With label smoothing, mixup and CutMix, for 1000 classes."""
    images, labels = micro_batch(classes=1000)
    for key in range(8):
        _, targets = augment(images, labels, AugmentConfig(mixup=0.8, cutmix=1.0, label_smoothing=0.1), 1000, key)
        torch.testing.assert_close(targets.sum(1), torch.ones(32))
        assert targets.min() > 0
