"""Crop boxes: random ones are distributed as in torchvision and are reproducible, center crops are in the center."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from data_prep.sources.fashion_mnist import fashion_mnist
from tests.helpers.data_sets import TRAIN
from tests.helpers.loading import decoded
from tests.helpers.statistics import ks_distance
from vit.data.beton import open_beton
from vit.data.decode import CenterCrop, RandomCrop

IMAGENET_CROP = RandomCrop(seed=0, scale=(0.08, 1.0), ratio=(0.75, 4 / 3))


def test_uncropped_raw_images_are_the_originals(betons: Path, tmp_path: Path) -> None:
    """Equal pixels and labels with any crop that covers the whole image."""
    source, beton = fashion_mnist("train", tmp_path), betons / "train.beton"
    originals = np.repeat(np.stack(source.images[:TRAIN])[..., None], 3, axis=3)
    for crop in (RandomCrop(0, (1.0, 1.0), (1.0, 1.0)), CenterCrop(1.0)):
        assert np.array_equal(decoded(beton, crop, 28, np.arange(TRAIN)), originals)
    assert np.array_equal(open_beton(beton).labels, source.labels[:TRAIN])


def test_a_random_crop_without_resizing_is_a_region_of_the_image(betons: Path) -> None:
    """A crop as large as the output has the image's pixels at its position, which differs in the next epoch."""
    quarter, everything = RandomCrop(0, (0.25, 0.25), (1.0, 1.0)), np.arange(TRAIN)
    whole = decoded(betons / "train.beton", CenterCrop(1.0), 28, everything)
    side = np.full(TRAIN, 28)
    positions = []
    for epoch in (0, 1):
        boxes = quarter.boxes(np.full(TRAIN, epoch), everything, side, side)
        positions.append(list(zip(boxes.top.tolist(), boxes.left.tolist(), strict=True)))
        regions = [image[t : t + 14, w : w + 14] for image, (t, w) in zip(whole, positions[-1], strict=True)]
        assert np.array_equal(decoded(betons / "train.beton", quarter, 14, everything, epoch), np.stack(regions))
    assert sum(a == b for a, b in zip(*positions, strict=True)) < 15  # of 225 positions; 2 are expected


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 500), (500, 60)])
def test_random_crops_are_distributed_as_in_torchvision(height: int, width: int) -> None:
    """Area, aspect ratio and position of 20,000 boxes; in the long images half of them are the fallback box."""
    n = 20_000
    samples = np.arange(n)
    ours = np.stack(IMAGENET_CROP.boxes(samples % 7, samples, np.full(n, height), np.full(n, width)), axis=1)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [0.75, 4 / 3]) for _ in range(n)])
    for measure in (
        lambda top, left, h, w: h * w,
        lambda top, left, h, w: w / h,
        lambda top, left, h, w: top,
        lambda top, left, h, w: left,
        lambda top, left, h, w: top + h,
        lambda top, left, h, w: left + w,
    ):
        # 1 in 20,000 pairs of samples of the same distribution have a larger distance.
        assert ks_distance(measure(*ours.T), measure(*theirs.T)) < 2.3


@pytest.mark.parametrize("ratio", [(0.75, 4 / 3), (0.2, 0.3), (3.0, 5.0), (1.0, 1.0)])
def test_random_crops_stay_inside_their_images(ratio: tuple[float, float]) -> None:
    """Also for images of a single pixel, and for those one pixel high or wide, which few boxes fit."""
    sides = np.array([1, 2, 3, 7, 40, 499, 500])
    height, width, epoch = (values.ravel() for values in np.meshgrid(sides, sides, np.arange(50)))
    top, left, h, w = RandomCrop(1, (0.08, 1.0), ratio).boxes(epoch, np.arange(len(epoch)), height, width)
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_random_crops_are_the_same_in_every_version() -> None:
    """Known boxes of some samples and epochs, including images of 1 x 500 pixels."""
    epochs, samples = np.array([0, 0, 0, 1, 89, 0, 0]), np.array([0, 1, 1281166, 0, 7, 3, 4])
    height, width = np.array([375, 375, 500, 375, 333, 1, 500]), np.array([500, 500, 375, 500, 500, 500, 1])
    assert np.stack(IMAGENET_CROP.boxes(epochs, samples, height, width), axis=1).tolist() == [
        [37, 15, 248, 253],
        [27, 4, 338, 341],
        [60, 34, 270, 326],
        [150, 228, 173, 198],
        [2, 125, 309, 232],
        [0, 249, 1, 1],
        [249, 0, 1, 1],
    ]


def test_a_center_crop_is_in_the_center() -> None:
    """For wide, high and tiny images; an odd pixel is to the right or below."""
    height, width = np.array([256, 300, 400, 1, 5]), np.array([256, 400, 301, 9, 4])
    boxes = CenterCrop(0.875).boxes(np.zeros(5, np.int64), np.arange(5), height, width)
    expected = [[16, 16, 224, 224], [19, 69, 262, 262], [68, 19, 263, 263], [0, 4, 1, 1], [1, 0, 3, 3]]
    assert np.stack(boxes, axis=1).tolist() == expected
