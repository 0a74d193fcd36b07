"""The implementations of the pixel operations in torch and in C++ give the same bytes."""

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.images import micro_batch, noise, one_color, photographs
from vit.augment import pixel_ops, randaugment
from vit.augment.pipeline import augment, normalize
from vit.augment.randaugment import OPERATIONS, TORCHVISION_OPERATIONS
from vit.config.sections import AugmentConfig

pytestmark = pytest.mark.skipif(
    pixel_ops.native_library(torch.zeros(1)) is None, reason="the C++ library was not built"
)

SIZES = ((64, 64), (33, 47), (1, 9), (7, 2), (2, 1))
RECIPES = (
    AugmentConfig(randaugment_ops=2, mixup=0.8, cutmix=1.0, label_smoothing=0.1),
    AugmentConfig(randaugment="timm", randaugment_ops=2, randaugment_deviation=2.0, erasing=0.5),
    AugmentConfig(three_augment=True, color_jitter=0.4, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)),
)


@contextmanager
def using_library(library: ctypes.CDLL | None) -> Iterator[None]:
    """Uses another build of the C++ library; None: the implementation in torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_ops, "_library", lambda: library)
        yield


def every_magnitude(name: str, images: Tensor) -> Tensor:
    """One operation at each of torchvision's magnitudes and both signs: (62 n, 3, H, W)."""
    op = np.full(len(images), list(OPERATIONS).index(name))
    cases = itertools.product(range(randaugment.BINS), (-1, 1))
    amount = [randaugment.torchvision_amounts(op, m, np.full(len(op), sign), *images.shape[2:]) for m, sign in cases]
    return randaugment.apply(images.repeat(62, 1, 1, 1), np.tile(op, 62), np.concatenate(amount))


@pytest.mark.parametrize("name", TORCHVISION_OPERATIONS)
def test_cpp_and_torch_give_the_same_bytes_at_every_magnitude_and_sign(name: str, portable: ctypes.CDLL) -> None:
    """With and without AVX2, also for images one pixel wide."""
    for (H, W), make in itertools.product(SIZES, (photographs, noise, one_color)):
        images = make(2, H, W)
        native = every_magnitude(name, images)
        for other in (portable, None):
            with using_library(other):
                assert torch.equal(every_magnitude(name, images), native), f"{make.__name__} {H} x {W}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_cpp_and_torch_give_the_same_bytes_for_different_amounts_per_image(name: str, portable: ctypes.CDLL) -> None:
    """Arbitrary amounts and a fill color."""
    random = np.random.default_rng(3)
    greatest = {
        "Rotate": 180.0,
        "Posterize": 8,
        "Solarize": 256,
        "SolarizeAdd": 128,
        "TranslateX": 60,
        "TranslateY": 60,
    }
    amount = random.uniform(-1, 1, 64) * greatest.get(name, 0.9)
    if name in ("Posterize", "Solarize", "SolarizeAdd"):
        amount = np.abs(amount.round())
    images, op = photographs(64, 40, 33), np.full(64, list(OPERATIONS).index(name))
    native = randaugment.apply(images.clone(), op, amount, (124, 116, 104))
    for other in (portable, None):
        with using_library(other):
            assert torch.equal(randaugment.apply(images.clone(), op, amount, (124, 116, 104)), native)


@pytest.mark.parametrize("cfg", RECIPES)
def test_cpp_and_torch_give_the_same_batches(cfg: AugmentConfig, portable: ctypes.CDLL) -> None:
    """Equal floats after the whole pipeline, including flips, color jitter, erasing and mixing."""
    images, labels = micro_batch(side=37)
    native = [augment(images, labels, cfg, 10, key)[0] for key in range(4)] + [normalize(images, cfg)]
    for other in (portable, None):
        with using_library(other):
            again = [augment(images, labels, cfg, 10, key)[0] for key in range(4)] + [normalize(images, cfg)]
        assert all(torch.equal(a, b) for a, b in zip(native, again, strict=True))
