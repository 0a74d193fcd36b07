"""The inputs of a step are augmented in the image size and with the magnitude of that step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.data_sets import JPEGS, small_config
from tests.helpers.loading import copied_batches, simulated_world, with_data
from vit.augment.pipeline import augment
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.data.loader import TrainData
from vit.random_keys import Stream, key
from vit.training.step import augmented_batches

SIDES = (14, 14, 21, 21, 28, 28, 28, 28)  # of each step: three epochs of 64 images in batches of 24
STEPS = len(SIDES)


def config(path: Path, **changes: object) -> Config:
    cfg = replace(small_config(path), epochs=3, global_batch=24, micro_batch=6)
    augmentation = {"randaugment": "timm", "randaugment_ops": 2, "randaugment_deviation": 0.5, "erasing": 0.25}
    cfg = replace(cfg, augment=replace(cfg.augment, mixup=0.8, cutmix=1.0, **augmentation | changes))
    return with_data(cfg, limit=JPEGS)


def with_sizes(cfg: Config, small_images: str) -> Config:
    rows = ((0.25, 14, 12), (0.25, 21, 6), (0.5, 28, 6))
    return with_data(replace(cfg, train_sizes=rows), small_images=small_images)


def micro_batches(cfg: Config, ranks: int = 1) -> list[list[tuple[Tensor, Tensor]]]:
    """Images and targets of all micro-batches of each step, in the order of the ranks."""
    out: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(STEPS)]
    for rank in range(ranks):
        world = simulated_world(rank, ranks)
        data = TrainData(cfg, world)
        for step, batch in enumerate(augmented_batches(data.schedule, world, data.batches(0, STEPS), 0)):
            out[step] += batch.micro_batches
    return out


def equal(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


def test_a_step_with_a_magnitude_draws_as_a_run_with_that_magnitude(jpegs: Path) -> None:
    """`randaugment_ramp` changes nothing but the magnitude of each step, to the bit."""
    ramp = config(jpegs, randaugment_magnitude=9, randaugment_ramp=True)
    schedule, rising = RunSchedule(ramp, JPEGS), micro_batches(ramp)
    magnitudes = [schedule.config(step).augment.randaugment_magnitude for step in range(STEPS)]
    assert magnitudes == [0, 1, 2, 3, 5, 6, 7, 8]
    for step, magnitude in enumerate(magnitudes):
        assert equal(rising[step], micro_batches(config(jpegs, randaugment_magnitude=magnitude))[step])


@pytest.mark.parametrize("small_images", ["decoded", "lanczos"])
def test_images_have_the_size_of_their_step_whatever_the_number_of_ranks(small_images: str, jpegs: Path) -> None:
    """In micro-batches of the step's size, with equal bits on 1 and 2 ranks."""
    cfg = with_sizes(config(jpegs), small_images)
    steps = micro_batches(cfg)
    for step, side in zip(steps, SIDES, strict=True):
        count = 12 if side == 14 else 6
        assert [tuple(images.shape) for images, _ in step] == 24 // count * [(count, 3, side, side)]
    assert all(equal(a, b) for a, b in zip(micro_batches(cfg, ranks=2), steps, strict=True))


def test_lanczos_augments_the_crops_of_the_model_and_then_makes_them_small(jpegs: Path) -> None:
    """Each micro-batch is the augmented full crops, resized; steps at the full size are those without `train_sizes`."""
    plain = config(jpegs)
    cfg = with_sizes(plain, "lanczos")
    crops = copied_batches(TrainData(plain, simulated_world()).batches(0, STEPS))
    without_sizes = micro_batches(plain)
    for step, ours in enumerate(micro_batches(cfg)):
        count = len(ours[0][0])
        for index, images in enumerate(crops[step].images.split(count)):
            labels, its_key = crops[step].labels.split(count)[index], key(Stream.AUGMENT, cfg.seed, step, index)
            expected = augment(images, labels, cfg.augment, cfg.model.num_classes, its_key, side=SIDES[step])
            assert equal([ours[index]], [expected])
        assert equal(ours, without_sizes[step]) == (SIDES[step] == 28)
