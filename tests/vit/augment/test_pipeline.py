"""The augmentation pipeline: a pure function of images and key, flips, normalization, and no synchronization."""

import math
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2

from tests.helpers.images import micro_batch, photographs
from vit.augment import pixel_ops
from vit.augment.pipeline import augment, augment_micro_batches, normalize
from vit.augment.randaugment import TORCHVISION_OPERATIONS, apply, torchvision_amounts
from vit.config.sections import AugmentConfig

EVERYTHING = AugmentConfig(randaugment_ops=2, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
# Normalization changes nothing: the outputs are levels from 0 to 255.
LEVELS = AugmentConfig(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def test_the_result_depends_only_on_images_and_key() -> None:
    """The same key gives the same result, whatever was drawn from torch's generator; another key gives another one."""
    images, labels = micro_batch()
    first = augment(images, labels, EVERYTHING, 10, 7)
    torch.manual_seed(0), torch.rand(3)
    other = augment(images, labels, EVERYTHING, 10, 8)
    again = augment(images, labels, EVERYTHING, 10, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_augmentation_does_not_change_its_input() -> None:
    """The loader's buffers are not overwritten."""
    images, labels = micro_batch()
    before = images.clone(), labels.clone()
    for key in range(4):
        augment(images, labels, EVERYTHING, 10, key)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_an_image_depends_only_on_itself_and_the_image_it_is_mixed_with() -> None:
    """Replacing one image changes only its own result and, with mixup or CutMix, that of the next image."""
    images, labels = micro_batch()
    replaced = images.clone()
    replaced[5] = 255 - replaced[5]
    for cfg, changed in ((replace(EVERYTHING, mixup=0.0, cutmix=0.0), [5]), (EVERYTHING, [5, 6])):
        before, after = (augment(x, labels, cfg, 10, 3)[0] for x in (images, replaced))
        assert (before != after).flatten(1).any(1).nonzero().flatten().tolist() == changed


@pytest.mark.parametrize("cfg", [EVERYTHING, replace(EVERYTHING, randaugment="timm", randaugment_deviation=0.5)])
def test_micro_batches_augmented_together_are_as_augmented_alone(cfg: AugmentConfig) -> None:
    """To the bit, whatever is drawn for the others: in any number, by the C++ library and by torch."""
    images, labels = micro_batch()
    cfg = replace(cfg, three_augment=True, color_jitter=0.3, erasing=0.5)
    for native in (True, False):
        with nullcontext() if native else mock.patch.object(pixel_ops, "_library", return_value=None):
            for m in (16, 8, 4):
                keys = [10 * m + j for j in range(len(images) // m)]
                parts = zip(images.split(m), labels.split(m), keys, strict=True)
                alone = [augment(each, its_labels, cfg, 10, key, 3) for each, its_labels, key in parts]
                together = augment_micro_batches(images, labels, cfg, 10, keys, 3)
                for one, all_of_them in zip(zip(*alone, strict=True), together, strict=True):
                    assert torch.equal(torch.cat(one), all_of_them)


def test_the_host_never_waits_for_the_device() -> None:
    """No value is read back and no shape depends on one: fake tensors, which have no values, would raise."""
    images, labels = micro_batch()
    normalize(images, EVERYTHING)  # copies the constants to the device, once
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        out, targets = augment(fake.from_tensor(images), fake.from_tensor(labels), EVERYTHING, 10, 3)
    assert (out.shape, out.dtype) == ((32, 3, 24, 24), torch.float32)
    assert (targets.shape, targets.dtype) == ((32, 10), torch.float32)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_images_are_flipped_with_the_configured_probability(probability: float) -> None:
    """Horizontally, independently for each image; never with probability 0, always with 1."""
    images, labels = micro_batch(B=64, side=6)
    original = images.permute(0, 3, 1, 2).float()
    flips = []
    for key in range(40):
        out, _ = augment(images, labels, replace(LEVELS, flip=probability), 10, key)
        flipped = (out == original.flip(3)).flatten(1).all(1)
        assert (flipped ^ (out == original).flatten(1).all(1)).all()
        flips.append(flipped)
    drawn = torch.stack(flips).float()  # (micro-batches, images)
    margin = 4 * math.sqrt(probability * (1 - probability) / drawn.numel())
    assert abs(float(drawn.mean()) - probability) <= margin
    if 0 < probability < 1:  # not all images of a micro-batch, and not one image in all of them
        assert 0 < drawn.mean(0).min() < drawn.mean(0).max() < 1
        assert 0 < drawn.mean(1).min() < drawn.mean(1).max() < 1


def test_normalization_is_that_of_torchvision() -> None:
    """In evaluation; training with all augmentations off gives equal images."""
    images, labels = micro_batch()
    cfg = AugmentConfig(flip=0.0)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(cfg.mean), list(cfg.std))])
    torch.testing.assert_close(normalize(images, cfg), reference(images.permute(0, 3, 1, 2)), rtol=1e-5, atol=1e-6)
    assert torch.equal(augment(images, labels, cfg, 10, 0)[0], normalize(images, cfg))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_pixels_of_a_cpu_without_synchronization() -> None:
    """Each operation within one level; CUDA's own check reports no synchronization."""
    op = np.tile(np.arange(len(TORCHVISION_OPERATIONS)), 2)
    sign = np.where(np.arange(len(op)) < 14, -1, 1)
    images, amount = photographs(len(op), 64, 64), torchvision_amounts(op, 9, sign, 64, 64)
    on_gpu, on_cpu = apply(images.cuda(), op, amount).cpu(), apply(images.clone(), op, amount)
    assert (on_gpu.int() - on_cpu.int()).abs().max() <= 1
    batch, labels = (x.cuda() for x in micro_batch())
    normalize(batch, EVERYTHING)  # copies the constants to the device, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for key in range(4):
            augment(batch, labels, EVERYTHING, 10, key)
    finally:
        torch.cuda.set_sync_debug_mode("default")
