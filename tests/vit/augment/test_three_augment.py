"""3-Augment, color jitter and random erasing: the pixels and distributions of the reference implementations."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from tests.helpers.images import noise, photographs
from tests.helpers.statistics import KS_LIMIT, chi_square, generator, ks_distance
from vit.augment.mixup import draw_erasing, erase
from vit.augment.pipeline import augment
from vit.augment.pixel_ops import Selection
from vit.augment.three_augment import (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    adjust,
    blur,
    color_jitter,
    draw_color_jitter,
    draw_three_augment,
    three_augment,
)
from vit.config.sections import AugmentConfig

IMAGES = {"photographs": photographs(6, 40, 56), "noise": noise(6, 33, 47)}


def max_difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def adjusted(images: Tensor, operation: int, factor: NDArray[Any]) -> Tensor:
    out = images.clone()
    adjust(Selection(out, np.arange(len(out))), operation, factor)
    return out


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_adjustments_of_color_jitter_are_those_of_torchvision(images: Tensor) -> None:
    """Within one level, with a different factor for each image."""
    factors = np.array([0.0, 0.5, 0.7, 1.0, 1.3, 2.0])
    for operation, theirs in (
        (BRIGHTNESS, TF.adjust_brightness),
        (CONTRAST, TF.adjust_contrast),
        (SATURATION, TF.adjust_saturation),
    ):
        reference = torch.stack([theirs(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)])
        assert max_difference(adjusted(images, operation, factors), reference) <= 1


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_the_blur_is_a_gaussian(images: Tensor) -> None:
    """Within one level of torchvision's, except at the border, where torchvision mirrors; close to Pillow's."""
    sigma = np.array([0.1, 0.3, 0.8, 1.2, 1.7, 2.0])
    blurred = blur(images, sigma)
    for image, ours, s in zip(images, blurred, sigma.tolist(), strict=True):
        theirs = TF.gaussian_blur(image, [13, 13], [s, s])
        assert max_difference(ours[:, 6:-6, 6:-6], theirs[:, 6:-6, 6:-6]) <= 1
        pillows = Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(s))
        difference = ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(pillows).astype(int)
        smooth = image.float().diff(dim=2).abs().mean() < 20
        assert not smooth or np.abs(difference).mean() < 1.5  # Pillow approximates it with box filters
    assert torch.equal(blurred[0], images[0])  # sigma 0.1 changes nothing


def test_three_augment_applies_one_of_three_operations_to_each_image() -> None:
    """Grayscale as in torchvision, solarization at 128, or blur, each with probability 1/3 for each image."""
    images = photographs(48, 24, 24)
    counts = np.zeros(3, int)
    for key in range(30):
        out = three_augment(images.clone(), *draw_three_augment(len(images), generator(key)))
        gray = (out[:, 0] == out[:, 1]).flatten(1).all(1) & (out[:, 1] == out[:, 2]).flatten(1).all(1)
        solarized = (out == torch.where(images >= 128, 255 - images, images)).flatten(1).all(1)
        counts += [int(gray.sum()), int(solarized.sum()), int((~gray & ~solarized).sum())]
        theirs = TF.rgb_to_grayscale(images[gray], 3)
        assert max_difference(out[gray], theirs) <= 1
    assert abs(chi_square(torch.from_numpy(counts))) < 4


def test_factors_of_color_jitter_are_distributed_as_in_torchvision() -> None:
    """Uniform around 1."""
    # Of a uniform gray image, only the brightness changes.
    flat = torch.full((64, 3, 4, 4), 100, dtype=torch.uint8)
    draws = [draw_color_jitter(len(flat), 0.3, generator(key)) for key in range(40)]
    ours = np.concatenate([color_jitter(flat.clone(), *drawn)[:, 0, 0, 0].numpy() for drawn in draws])
    torch.manual_seed(0)
    jitter = v2.ColorJitter(0.3, 0.3, 0.3)
    theirs = np.array([int(jitter(flat[0])[0, 0, 0]) for _ in range(len(ours))])
    assert ks_distance(dithered(ours, 0), dithered(theirs, 1)) < KS_LIMIT
    assert ours.min() in range(67, 71)
    assert ours.max() in range(127, 131)


def dithered(levels: NDArray[Any], seed: int) -> NDArray[Any]:
    """Integer levels plus uniform noise, so that there are no ties."""
    return levels + np.random.default_rng(seed).uniform(0, 1, len(levels))


def test_the_order_of_color_jitter_is_random_and_matters() -> None:
    """All six orders occur; the same factors in another order give other pixels."""
    bright = torch.tensor([250, 120, 10], dtype=torch.uint8).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    bright[..., 0] = 40
    orders = {tuple(generator(key).permuted(np.arange(3))) for key in range(100)}
    assert len(orders) == 6
    once = adjusted(adjusted(bright, BRIGHTNESS, np.array([1.3])), SATURATION, np.array([1.3]))
    other = adjusted(adjusted(bright, SATURATION, np.array([1.3])), BRIGHTNESS, np.array([1.3]))
    assert not torch.equal(once, other)


@pytest.mark.parametrize(("H", "W"), [(224, 224), (96, 160)])
def test_erased_boxes_are_distributed_as_in_torchvision(H: int, W: int) -> None:
    """Area, aspect ratio and position of 4,000 boxes."""
    boxes = np.concatenate([draw_erasing(500, H, W, 1.0, generator(key)) for key in range(8)])
    torch.manual_seed(0)
    image = torch.empty(3, H, W)
    theirs = []
    for _ in range(4000):
        top, left, h, w, _ = transforms.RandomErasing.get_params(image, (0.02, 1 / 3), (0.3, 1 / 0.3), [0.0])
        theirs.append((top, top + h, left, left + w))
    for measure in (
        lambda t, b, le, r: (b - t) * (r - le),
        lambda t, b, le, r: (b - t) / (r - le),
        lambda t, b, le, r: t,
        lambda t, b, le, r: r,
    ):
        assert ks_distance(measure(*boxes.T), measure(*np.array(theirs).T)) < KS_LIMIT


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_images_are_erased_with_the_configured_probability(probability: float) -> None:
    """Only pixels inside of the box change: to normal noise, or to 0 with the fill `mean`."""
    plain = torch.full((64, 3, 32, 32), 9.0)
    erased = 0
    values = []
    for key in range(10):
        boxes = draw_erasing(64, 32, 32, probability, generator(key))
        out = erase(plain.clone(), boxes, "noise", [torch.Generator().manual_seed(key)])
        for image, (top, bottom, left, right) in zip(out, boxes.tolist(), strict=True):
            inside = torch.zeros(32, 32, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert (image[:, ~inside] == 9).all()
            assert (image[:, inside] != 9).all()
            erased += bool(inside.any())
            values.append(image[:, inside].flatten())
        means = erase(plain.clone(), boxes, "mean", [torch.Generator()])
        assert set(means.unique().tolist()) <= {0.0, 9.0}
        assert torch.equal(means == 0, out != 9)
    margin = 4 * math.sqrt(probability * (1 - probability) / 640)
    assert abs(erased / 640 - probability) <= margin
    if probability:
        drawn = torch.cat(values)
        assert abs(float(drawn.mean())) < 5 / math.sqrt(len(drawn))
        assert abs(float(drawn.std()) - 1) < 0.02


def test_the_recipe_of_deit_iii_is_a_function_of_the_key() -> None:
    """3-Augment, color jitter, erasing and mixing together give the same finite results twice."""
    cfg = AugmentConfig(three_augment=True, color_jitter=0.3, erasing=0.5, mixup=0.8, cutmix=1.0)
    images = noise(16, 24, 24).permute(0, 2, 3, 1).contiguous()
    labels = torch.arange(16) % 10
    first, again, other = (augment(images, labels, cfg, 10, key) for key in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].isfinite().all()
