"""Batches whose image size changes from step to step have the pixels that a loader of each size alone gives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.data_sets import JPEGS, small_config
from tests.helpers.loading import Ints, copied_batches, overwrite, simulated_world, train_stream, with_data
from vit.config.schema import Config
from vit.data.beton import open_beton
from vit.data.decode import DecodeError
from vit.data.loader import TrainData
from vit.data.order import Order

SIDES = (14, 14, 21, 21, 28, 28, 28, 28)  # of the images of each step: both borders are within one prefetch window
STEPS = len(SIDES)  # three epochs of 64 images in batches of 24
ROWS = ((0.25, 14, 12), (0.25, 21, 6), (0.5, 28, 6))


def small(path: Path, **changes: object) -> Config:
    """Two or four micro-batches a step, with images of three sizes."""
    cfg = replace(small_config(path), epochs=3, global_batch=24, micro_batch=6, train_sizes=ROWS)
    return with_data(cfg, limit=JPEGS, workers=2, verify="never", **changes)


def sized(cfg: Config, side: int) -> Config:
    """The same without `train_sizes`."""
    return replace(cfg, train_sizes=(), model=replace(cfg.model, image_size=side))


def steps_of(cfg: Config, ranks: int = 1, start: int = 0) -> tuple[list[Ints], list[Tensor]]:
    """Samples and pixels of each step, of all ranks in the order of their micro-batches."""
    data = [TrainData(cfg, simulated_world(rank, ranks)) for rank in range(ranks)]
    by_rank = [copied_batches(each.batches(start, STEPS)) for each in data]
    in_order = list(zip(*by_rank, strict=True))
    samples = [np.concatenate([batch.samples for batch in step]) for step in in_order]
    return samples, [torch.cat([batch.images for batch in step]) for step in in_order]


@pytest.mark.parametrize("decoder", ["native", "scaled", "ffcv"])
@pytest.mark.parametrize("data", ["jpegs", "betons"])
def test_images_of_a_step_are_those_of_a_run_with_its_size_alone(
    data: str, decoder: str, request: pytest.FixtureRequest
) -> None:
    """The same samples and crops, each resized to the side of its step, from JPEGs and from raw pixels."""
    cfg = small(request.getfixturevalue(data), decoder=decoder)
    samples, images = steps_of(cfg)
    assert [tuple(each.shape) for each in images] == [(24, side, side, 3) for side in SIDES]
    for side in set(SIDES):
        alone_samples, _, alone = train_stream(sized(cfg, side), 1, 0, STEPS)
        for step in (step for step in range(STEPS) if SIDES[step] == side):
            mine = slice(24 * step, 24 * (step + 1))
            assert np.array_equal(samples[step], alone_samples[mine])
            assert torch.equal(images[step], alone[mine])


@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_threads_prefetch_and_a_resume_around_a_border_change_nothing(repeats: int, jpegs: Path) -> None:
    """On 1 and 2 ranks, from each step on; with repeated augmentation, whose places depend on the micro-batch."""
    cfg = small(jpegs, repeats=repeats)
    samples, images = steps_of(cfg)
    for start in range(STEPS):
        for ranks, workers, prefetch in ((1, 1, 1), (2, 3, 4)):
            other = with_data(cfg, workers=workers, prefetch=prefetch)
            again_samples, again = steps_of(other, ranks, start)
            assert all(np.array_equal(a, b) for a, b in zip(again_samples, samples[start:], strict=True))
            assert all(torch.equal(a, b) for a, b in zip(again, images[start:], strict=True))


def in_step(cfg: Config, step: int) -> int:
    """A sample of a step that is in no step before it."""
    (sample,) = Order(cfg.seed, JPEGS).at(np.array([24 * step + 5])).samples
    return int(sample)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_damaged_image_at_a_border_is_replaced_in_the_size_of_its_step(step: int, jpegs_copy: Path) -> None:
    """On any number of ranks; all other images stay as they are, in the size of their own steps."""
    cfg = small(jpegs_copy, on_bad="skip")
    before_samples, before = steps_of(cfg)
    damaged = in_step(cfg, step)
    overwrite(jpegs_copy, int(open_beton(jpegs_copy).offset[damaged]), bytes(64))
    samples, images = steps_of(cfg)
    for each in range(STEPS):
        replaced = before_samples[each] == damaged
        assert np.array_equal(samples[each] != before_samples[each], replaced)
        assert torch.equal(images[each][~replaced], before[each][~replaced])
        assert (images[each] != before[each]).flatten(1).any(1).tolist() == replaced.tolist()
    again_samples, again = steps_of(cfg, ranks=2, start=step)
    assert all(np.array_equal(a, b) for a, b in zip(again_samples, samples[step:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, images[step:], strict=True))


def test_a_damaged_image_behind_a_border_ends_its_own_step(jpegs_copy: Path) -> None:
    """The steps before it, which are smaller, are yielded although it was decoded ahead of them."""
    cfg = small(jpegs_copy)
    damaged = in_step(cfg, 2)
    overwrite(jpegs_copy, int(open_beton(jpegs_copy).offset[damaged]), bytes(64))
    batches = TrainData(cfg, simulated_world()).batches(0, STEPS)
    assert [next(batches).images.shape[1] for _ in range(2)] == [14, 14]
    with pytest.raises(DecodeError, match=f"sample {damaged} "):
        next(batches)


def test_images_to_be_resized_later_are_decoded_in_the_size_of_the_model(jpegs: Path) -> None:
    """With `data.small_images lanczos`, augmentation makes them small."""
    cfg = small(jpegs, small_images="lanczos")
    _, images = steps_of(cfg)
    _, _, of_full_size = train_stream(sized(cfg, 28), 1, 0, STEPS)
    assert torch.equal(torch.cat(images), of_full_size)


def test_images_of_all_sizes_share_the_memory_of_the_largest(jpegs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory is allocated when reading starts, and never in a step."""
    allocated: list[tuple[int, ...]] = []
    empty: Callable[..., Tensor] = torch.empty

    def counted(shape: tuple[int, ...], **options: object) -> Tensor:
        if isinstance(shape, tuple):
            allocated.append(shape)
        return empty(shape, **options)

    monkeypatch.setattr(torch, "empty", counted)
    data = TrainData(small(jpegs, prefetch=2), simulated_world())
    assert [batch.images.shape[1] for batch in data.batches(0, STEPS)] == list(SIDES)
    assert allocated == 3 * [(24, 28, 28, 3)]
