"""The data loader yields the same batches from any step, for any number of ranks and threads, and leaks nothing."""

import gc
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import torch

from tests.helpers.data_sets import CLASSES, JPEGS, TRAIN, VAL, small_config
from tests.helpers.loading import copied_batches, decoded, overwrite, simulated_world, train_stream, with_data
from tests.helpers.ranks import run_ranks
from vit.config.sections import DataConfig
from vit.data.beton import open_beton
from vit.data.decode import CenterCrop, DecodeError, Decoder, RandomCrop, resolve_decoder
from vit.data.loader import TrainData, ValData, _Buffer, decoding_threads
from vit.data.order import Order

# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("kind", ["raw", "jpg"])
def test_any_ranks_workers_and_start_give_the_same_batches(kind: str, request: pytest.FixtureRequest) -> None:
    """Equal samples, labels and pixels for 1, 2 and 4 ranks with 1 to 4 threads, from step 0 or from a later step.

    24 divides the size of neither data set, so that batches span two epochs.
    """
    data, samples = {"raw": ("betons", TRAIN), "jpg": ("jpegs", JPEGS)}[kind]
    cfg = replace(small_config(request.getfixturevalue(data)), global_batch=24, micro_batch=6)
    steps = 7
    order, labels, images = train_stream(cfg, 1, 0, steps)
    epochs, expected = Order(cfg.seed, samples).at(np.arange(24 * steps))
    beton = open_beton(cfg.data.train)
    pixels = np.empty((24 * steps, 28, 28, 3), np.uint8)
    crop = RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio)
    Decoder(beton, crop, resolve_decoder("auto")).decode(epochs, expected, pixels)
    assert np.array_equal(order, expected)
    assert np.array_equal(labels.numpy(), beton.labels[expected])
    assert np.array_equal(images.numpy(), pixels)

    for ranks in (1, 2, 4):
        for workers in (1, 2, 3, 4):
            for start in (0, 3):
                other = with_data(cfg, workers=workers, prefetch=1 + workers % 3)
                ours = train_stream(other, ranks, start, steps)
                assert np.array_equal(ours[0], order[24 * start :])
                assert torch.equal(ours[1], labels[24 * start :])
                assert torch.equal(ours[2], images[24 * start :])


def test_each_epoch_trains_on_each_sample_once(betons: Path) -> None:
    """For two epochs on four ranks, with a batch of 48, which does not divide 512."""
    cfg = replace(small_config(betons), global_batch=48, micro_batch=12)
    samples, _, _ = train_stream(cfg, 4, 0, -(-2 * TRAIN // 48))
    for epoch in range(2):
        assert np.array_equal(np.sort(samples[epoch * TRAIN : (epoch + 1) * TRAIN]), np.arange(TRAIN))


def test_a_batch_larger_than_the_data_set_spans_several_epochs(jpegs: Path) -> None:
    """A batch of three epochs contains each sample three times, with different crops."""
    cfg = replace(small_config(jpegs), global_batch=3 * JPEGS, micro_batch=JPEGS)
    samples, _, images = train_stream(cfg, 3, 0, 1)
    assert np.bincount(samples).tolist() == [3] * JPEGS
    by_sample = [images[samples == sample] for sample in range(JPEGS)]
    same = sum(torch.equal(first, second) for first, second, _ in by_sample)
    assert same < JPEGS / 4  # only very long images, which few boxes fit


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_each_validation_image_is_seen_once(ranks: int, betons: Path) -> None:
    """On any number of ranks.  Padding has the label -1, and all ranks get the same number of batches."""
    cfg = with_data(small_config(betons), workers=2)
    data = [ValData(cfg, simulated_world(rank, ranks)) for rank in range(ranks)]
    batches = [copied_batches(each.batches()) for each in data]
    per_rank = -(-13 // ranks)  # 100 images in batches of 8
    assert {len(each) for each in batches} == {each.batches_per_rank for each in data} == {per_rank}
    in_order = [batch for same_round in zip(*batches, strict=True) for batch in same_round]
    assert np.concatenate([b.samples for b in in_order]).tolist() == list(range(VAL))
    beton = data[0].beton
    pixels = decoded(cfg.data.val, CenterCrop(cfg.data.val_crop), 28, np.arange(VAL), backend=resolve_decoder("auto"))
    for batch in in_order:
        real = len(batch.samples)
        assert len(batch.images) == len(batch.labels) == cfg.micro_batch
        assert batch.labels[:real].tolist() == beton.labels[batch.samples].tolist()
        assert batch.labels[real:].tolist() == [-1] * (cfg.micro_batch - real)
        assert np.array_equal(batch.images[:real].numpy(), pixels[batch.samples])


def decoding_threads_on_one_core(cfg: DataConfig, core: int) -> int:
    os.sched_setaffinity(0, [core])
    return decoding_threads(cfg, simulated_world())


def test_a_rank_decodes_on_its_share_of_the_cores_of_the_job(jpegs: Path) -> None:
    """Slurm may give a job only some cores of a node; `data.workers` overrides the number of threads."""
    cores = sorted(os.sched_getaffinity(0))
    automatic = replace(small_config(jpegs).data, workers=0)

    assert run_ranks(1, decoding_threads_on_one_core, automatic, cores[0]) == [1]
    assert decoding_threads(automatic, simulated_world()) == len(cores)
    assert decoding_threads(automatic, simulated_world(0, 2)) == max(1, len(cores) // 2)
    assert decoding_threads(automatic, simulated_world(0, 4096)) == 1
    assert decoding_threads(replace(automatic, workers=5), simulated_world(0, 2)) == 5


def test_threads_that_wait_for_a_copy_to_the_gpu_use_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default they would spin, on cores on which others decode."""
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: torch.zeros(shape, dtype=dtype))
    event = mock.Mock()
    monkeypatch.setattr(torch.cuda, "Event", event)
    _Buffer(2, 28, torch.device("cuda"))
    event.assert_called_once_with(blocking=True)


@pytest.mark.parametrize("num_classes", [CLASSES - 1, CLASSES + 1])
def test_a_model_with_another_number_of_classes_is_refused(num_classes: int, jpegs: Path) -> None:
    """With too many classes it would train silently, with too few it would fail inside of a CUDA kernel."""
    cfg = small_config(jpegs)
    cfg = replace(cfg, model=replace(cfg.model, num_classes=num_classes))
    for kind in (TrainData, ValData):
        with pytest.raises(ValueError, match=f"num_classes is {num_classes}, but {jpegs} has {CLASSES} classes"):
            kind(cfg, simulated_world())


# ------------------------------------------------------------------------------------------------------------- errors


def running_decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 4])
def test_an_image_that_cannot_be_decoded_is_an_error(workers: int, jpegs_copy: Path) -> None:
    """It names file, sample and offset, is raised for its own batch, and leaves no thread; FFCV's Loader would hang."""
    cfg = with_data(replace(small_config(jpegs_copy), global_batch=8), workers=workers)
    position = 37
    damaged = int(Order(cfg.seed, JPEGS).permutation(0)[position])
    offset = int(open_beton(jpegs_copy).offset[damaged])
    overwrite(jpegs_copy, offset, bytes(64))
    batches = TrainData(cfg, simulated_world()).batches(0, 100)
    for _ in range(position // 8):
        next(batches)
    with pytest.raises(DecodeError, match=rf"{jpegs_copy}: sample {damaged} \(\d+ bytes at offset {offset}\)"):
        next(batches)
    assert running_decoding_threads() == []
    with pytest.raises(DecodeError, match=f"sample {damaged} "):
        copied_batches(ValData(cfg, simulated_world()).batches())
    assert running_decoding_threads() == []


def read_one_batch(data: TrainData, how: str) -> None:
    """Takes one batch and leaves the iterator: closes it, forgets it, or raises an exception."""
    batches = data.batches(0, 1000)
    next(batches)
    if how == "closed":
        batches.close()
    if how == "raised":
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["closed", "forgotten", "raised"])
def test_leaving_an_epoch_early_leaves_no_thread(how: str, jpegs: Path) -> None:
    """Whether the iterator is closed, garbage-collected, or left by an exception."""
    cfg = with_data(small_config(jpegs), workers=3)
    data = TrainData(cfg, simulated_world())
    batches = data.batches(0, 1000)
    next(batches)
    assert len(running_decoding_threads()) == 3
    batches.close()
    try:
        read_one_batch(data, how)
    except KeyboardInterrupt as error:
        error.__traceback__ = None  # it refers to the frame, which refers to the iterator
    assert running_decoding_threads() == []


def test_leaving_an_epoch_early_two_hundred_times_leaks_no_memory(jpegs: Path) -> None:
    """FFCV's Loader leaks a thread and its buffers each time: https://github.com/libffcv/ffcv/issues/393."""
    cfg = with_data(replace(small_config(jpegs), global_batch=16), workers=2)
    cfg = replace(cfg, model=replace(cfg.model, image_size=140))  # 0.9 MB a batch
    data, process = TrainData(cfg, simulated_world()), psutil.Process()
    for i in range(210):
        if i == 10:
            gc.collect()
            before = process.memory_info().rss
        read_one_batch(data, "forgotten")
    assert running_decoding_threads() == []
    assert process.memory_info().rss - before < 25e6  # 380 MB if the buffers were kept


def test_the_loader_imports_neither_ffcv_nor_numba() -> None:
    """Their compilation at import would add 4 to 5 s to every start and restart."""
    code = "import sys, vit.data.loader; sys.exit(repr([m for m in ('ffcv', 'numba', 'cv2') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
