"""Images are resized by Lanczos's filter to Pillow's bytes, in C++ and in torch, where EfficientTrain++ does it."""

import ctypes
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.helpers.images import micro_batch, noise, one_color, photographs
from vit.augment import lanczos, pixel_ops
from vit.augment.mixup import draw_erasing, draw_mix
from vit.augment.pipeline import augment, augment_micro_batches, normalize
from vit.config.sections import AugmentConfig

# Sides of EfficientTrain++ and of progressive resizing, odd ones, a single pixel, enlarged images.
SIDES = [(224, 96), (224, 160), (224, 192), (224, 128), (224, 223), (192, 112), (28, 14), (28, 21), (101, 37)]
SIDES += [(97, 3), (33, 1), (1, 1), (7, 6), (2, 1), (1, 5), (17, 40), (64, 64)]
LEVELS = AugmentConfig(flip=0.0, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))  # outputs are levels


def extreme(count: int, H: int, W: int) -> Tensor:
    """Noise of black and white, whose sums are often below 0 or above 255."""
    return 255 * (noise(count, H, W) > 127).to(torch.uint8)


def by_pillow(images: Tensor, side: int) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, side, side) uint8."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    resized = [np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)) for picture in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("side", "small"), SIDES)
def test_resized_images_have_pillows_bytes(side: int, small: int, portable: ctypes.CDLL) -> None:
    """By the C++ library, with and without AVX2, and by the matrix products that a GPU runs; of any images."""
    for make in (photographs, noise, extreme, one_color):
        images = make(3, side, side)
        expected, before = by_pillow(images, small), images.clone()
        for library in (pixel_ops._library(), portable, None):
            with mock.patch.object(pixel_ops, "_library", return_value=library):
                assert torch.equal(lanczos.resize(images, small), expected), make.__name__
        assert torch.equal(images, before)


def test_large_batches_are_resized_in_parts() -> None:
    """By matrix products, whose memory stays bounded; the last part may be smaller."""
    images = photographs(150, 24, 24)
    with mock.patch.object(pixel_ops, "_library", return_value=None):
        assert torch.equal(lanczos.resize(images, 15), by_pillow(images, 15))


def test_weights_do_not_depend_on_the_last_bits_of_a_sine() -> None:
    """Libraries of other machines may round it differently; no weight is that close to where it would be rounded."""
    sides = range(16, 224, 16)
    plain = [lanczos.integer_weights(224, side) for side in sides]
    for error in (-1e-13, 1e-13):
        sine = lambda x, error=error: np.sin(x) * (1 + error)  # noqa: E731
        with mock.patch.object(lanczos.math, "sin", sine):
            assert all(np.array_equal(lanczos.integer_weights(224, s), w) for s, w in zip(sides, plain, strict=True))


def test_products_and_sums_of_the_weights_are_exact_in_float64() -> None:
    """Their largest possible absolute sum is far below 2**53 units of a weight."""
    for side, small in SIDES:
        weights = lanczos.integer_weights(side, small)
        assert np.array_equal(weights, np.rint(weights))
        assert np.abs(weights).sum(1).max() * 255 + 2**21 < 2**32


def test_images_are_resized_after_their_levels_were_changed_and_before_they_are_mixed() -> None:
    """EfficientTrain++'s order: flip and RandAugment at the full side, Pillow's resize, then mixup and erasing."""
    images, labels = micro_batch(side=24)
    changed = replace(LEVELS, flip=0.5, randaugment_ops=2, randaugment="timm")
    for key in range(4):
        full = augment(images, labels, changed, 10, key)[0].to(torch.uint8)
        expected = by_pillow(full, 16).float()
        assert torch.equal(augment(images, labels, changed, 10, key, side=16)[0], expected)
    mixed, targets = augment(images, labels, replace(changed, cutmix=1.0, erasing=1.0), 10, 1, side=16)
    assert mixed.shape == (32, 3, 16, 16)
    assert not torch.equal(mixed, expected)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))


def test_boxes_are_drawn_for_the_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CutMix and of erasing; a box of the full side would often be outside of the small image."""
    drawn: list[tuple[int, int]] = []

    def recorded_mix(cfg: AugmentConfig, H: int, W: int, *rest: object) -> object:
        drawn.append((H, W))
        return draw_mix(cfg, H, W, *rest)  # type: ignore[arg-type]

    def recorded_erasing(B: int, H: int, W: int, *rest: object) -> object:
        drawn.append((H, W))
        return draw_erasing(B, H, W, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("vit.augment.draws.draw_mix", recorded_mix)
    monkeypatch.setattr("vit.augment.draws.draw_erasing", recorded_erasing)
    images, labels = micro_batch(side=24)
    augment(images, labels, replace(LEVELS, cutmix=1.0, erasing=0.5), 10, 0, side=16)
    assert drawn == [(16, 16), (16, 16)]


def test_images_that_have_the_side_already_are_augmented_as_without_it() -> None:
    """To the bit, with every augmentation."""
    images, labels = micro_batch(side=24)
    cfg = AugmentConfig(randaugment_ops=2, mixup=0.8, cutmix=1.0, three_augment=True, color_jitter=0.3, erasing=0.5)
    for one, other in zip(
        augment(images, labels, cfg, 10, 3, side=24), augment(images, labels, cfg, 10, 3), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("native", [True, False])
def test_micro_batches_resized_together_are_as_resized_alone(native: bool) -> None:
    """By the C++ library and by torch."""
    images, labels = micro_batch(side=24)
    cfg = AugmentConfig(randaugment_ops=2, mixup=0.8, cutmix=1.0, erasing=0.5)
    library = pixel_ops._library() if native else None
    with mock.patch.object(pixel_ops, "_library", return_value=library):
        parts = zip(images.split(8), labels.split(8), range(4), strict=True)
        alone = [augment(each, its_labels, cfg, 10, key, side=15)[0] for each, its_labels, key in parts]
        assert torch.equal(augment_micro_batches(images, labels, cfg, 10, range(4), side=15)[0], torch.cat(alone))


def test_the_host_never_waits_for_the_device_to_resize() -> None:
    """No value is read back: fake tensors, which have no values, would raise."""
    images, labels = micro_batch(side=24)
    cfg = AugmentConfig(randaugment_ops=2, mixup=0.8)
    normalize(images, cfg)  # copies the constants to the device, once
    with mock.patch.object(pixel_ops, "_library", return_value=None):
        lanczos.resize(images.permute(0, 3, 1, 2), 16)  # likewise the weights
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        out, _ = augment(fake.from_tensor(images), fake.from_tensor(labels), cfg, 10, 3, side=16)
    assert (out.shape, out.dtype) == ((32, 3, 16, 16), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_resizes_to_the_bytes_of_a_cpu_without_synchronization() -> None:
    """CUDA's own check reports no synchronization, not even when the weights are first copied."""
    for side, small in SIDES:
        images = photographs(3, side, side)
        on_gpu = images.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            resized = lanczos.resize(on_gpu, small)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(resized.cpu(), lanczos.resize(images, small))
