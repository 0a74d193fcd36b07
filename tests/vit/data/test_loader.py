"""Data: the same samples and pixels wherever a run is and however it is spread, and no fault passed over in silence."""

import gc
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from data_prep.sources.fashion_mnist import fashion_mnist
from tests.helpers.data_sets import CLASSES, JPEGS, TRAIN, VAL, small_config
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config, DataConfig
from vit.data.beton import open_beton
from vit.data.dataset_manifest import manifest_path
from vit.data.decode import CenterCrop, DecodeError, Decoder, RandomCrop, resolve
from vit.data.loader import Batch, TrainData, ValData, threads
from vit.data.order import Order
from vit.distributed.world import World

Ints = NDArray[np.int64]
IMAGENET_CROP = RandomCrop(seed=0, scale=(0.08, 1.0), ratio=(0.75, 4 / 3))

# ------------------------------------------------------------------------------------------------------------- batches


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))


def with_data(cfg: Config, **changes: Any) -> Config:
    return replace(cfg, data=replace(cfg.data, **changes))


def kept(batches: Iterator[Batch]) -> list[Batch]:
    """Batches that outlive the next one."""
    return [Batch(b.images.clone(), b.labels.clone(), b.samples.copy()) for b in batches]


def train_stream(cfg: Config, ranks: int, start: int, stop: int) -> tuple[Ints, torch.Tensor, torch.Tensor]:
    """Samples, labels and pixels of steps `start` to `stop`, of all ranks in the order of their micro-batches."""
    parts = [kept(TrainData(cfg, world(rank, ranks)).batches(start, stop)) for rank in range(ranks)]
    in_order = [part[step] for step in range(stop - start) for part in parts]
    assert [len(part) for part in parts] == [stop - start] * ranks
    return (
        np.concatenate([b.samples for b in in_order]),
        torch.cat([b.labels for b in in_order]),
        torch.cat([b.images for b in in_order]),
    )


@pytest.mark.parametrize("kind", ["raw", "jpg"])
def test_any_ranks_workers_and_start_give_the_same_batches(kind: str, request: pytest.FixtureRequest) -> None:
    """Samples, labels and pixels, to the bit, for 1, 2 and 4 ranks of 1 to 4 threads, from step 0 or from the middle.

    24 divides neither data set: batches straddle the epochs.
    """
    data, samples = {"raw": ("betons", TRAIN), "jpg": ("jpegs", JPEGS)}[kind]
    cfg = replace(small_config(request.getfixturevalue(data)), global_batch=24, micro_batch=6)
    steps = 7
    order, labels, images = train_stream(cfg, 1, 0, steps)
    epochs, expected = Order(cfg.seed, samples).at(np.arange(24 * steps))
    beton = open_beton(cfg.data.train)
    pixels = np.empty((24 * steps, 28, 28, 3), np.uint8)
    Decoder(beton, RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio), 28, resolve("auto")).decode(
        epochs, expected, pixels
    )
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
    """Over two epochs on four ranks, though 48 does not divide 512."""
    cfg = replace(small_config(betons), global_batch=48, micro_batch=12)
    samples, _, _ = train_stream(cfg, 4, 0, -(-2 * TRAIN // 48))
    for epoch in range(2):
        assert np.array_equal(np.sort(samples[epoch * TRAIN : (epoch + 1) * TRAIN]), np.arange(TRAIN))


def test_a_batch_larger_than_the_data_set_takes_several_epochs(jpegs: Path) -> None:
    """Three epochs in one step, each sample in each of them once, with crops of its own."""
    cfg = replace(small_config(jpegs), global_batch=3 * JPEGS, micro_batch=JPEGS)
    samples, _, images = train_stream(cfg, 3, 0, 1)
    assert np.bincount(samples).tolist() == [3] * JPEGS
    thrice = [images[samples == sample] for sample in range(JPEGS)]
    same = sum(torch.equal(first, second) for first, second, _ in thrice)
    assert same < JPEGS / 4  # none but long images, which hardly any box fits


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_each_validation_image_is_seen_once(ranks: int, betons: Path) -> None:
    """On any number of ranks; padding is labeled -1, and all ranks take part in the same number of rounds."""
    cfg = with_data(small_config(betons), workers=2)
    data = [ValData(cfg, world(rank, ranks)) for rank in range(ranks)]
    batches = [kept(each.batches()) for each in data]
    assert {len(each) for each in batches} == {each.rounds for each in data} == {-(-13 // ranks)}  # 100 images by 8
    flat = [batch for round_ in zip(*batches, strict=True) for batch in round_]
    assert np.concatenate([b.samples for b in flat]).tolist() == list(range(VAL))
    beton = data[0].beton
    pixels = np.empty((VAL, 28, 28, 3), np.uint8)
    Decoder(beton, CenterCrop(cfg.data.val_crop), 28, resolve("auto")).decode(
        np.zeros(VAL, np.int64), np.arange(VAL), pixels
    )
    for batch in flat:
        real = len(batch.samples)
        assert len(batch.images) == len(batch.labels) == cfg.micro_batch
        assert batch.labels[:real].tolist() == beton.labels[batch.samples].tolist()
        assert batch.labels[real:].tolist() == [-1] * (cfg.micro_batch - real)
        assert np.array_equal(batch.images[:real].numpy(), pixels[batch.samples])


def threads_on_one_core(cfg: DataConfig, core: int) -> int:
    os.sched_setaffinity(0, [core])
    return threads(cfg, world())


def test_a_rank_decodes_on_its_share_of_the_cores_that_it_may_use(jpegs: Path) -> None:
    """Slurm gives a job some of a machine's cores; a thread for each of the others would only be in the way."""
    cores = sorted(os.sched_getaffinity(0))
    automatic = replace(small_config(jpegs).data, workers=0)

    assert run_ranks(1, threads_on_one_core, automatic, cores[0]) == [1]
    assert threads(automatic, world()) == len(cores)
    assert threads(automatic, world(0, 2)) == max(1, len(cores) // 2)
    assert threads(automatic, world(0, 4096)) == 1
    assert threads(replace(automatic, workers=5), world(0, 2)) == 5


# -------------------------------------------------------------------------------------------------------------- pixels


def decoded(data: Path, crop: RandomCrop | CenterCrop, size: int, samples: Ints, epoch: int = 0) -> NDArray[np.uint8]:
    """(B,) -> (B, size, size, 3)"""
    out = np.empty((len(samples), size, size, 3), np.uint8)
    Decoder(open_beton(data), crop, size).decode(np.full(len(samples), epoch), samples, out)
    return out


def test_uncropped_raw_images_are_the_originals(betons: Path, tmp_path: Path) -> None:
    """Pixels and labels, byte for byte, whichever crop leaves the image whole."""
    source, beton = fashion_mnist("train", tmp_path), betons / "train.beton"
    originals = np.repeat(np.stack(source.images[:TRAIN])[..., None], 3, axis=3)
    for crop in (RandomCrop(0, (1.0, 1.0), (1.0, 1.0)), CenterCrop(1.0)):
        assert np.array_equal(decoded(beton, crop, 28, np.arange(TRAIN)), originals)
    assert np.array_equal(open_beton(beton).labels, source.labels[:TRAIN])


def test_a_random_crop_is_a_window_of_the_image(betons: Path) -> None:
    """A window of the output's own size: its pixels are the image's at that place, another in the next epoch."""
    quarter, everything = RandomCrop(0, (0.25, 0.25), (1.0, 1.0)), np.arange(TRAIN)
    whole = decoded(betons / "train.beton", CenterCrop(1.0), 28, everything)
    side = np.full(TRAIN, 28)
    places = []
    for epoch in (0, 1):
        boxes = quarter.boxes(np.full(TRAIN, epoch), everything, side, side)
        places.append(list(zip(boxes.top.tolist(), boxes.left.tolist(), strict=True)))
        windows = [image[t : t + 14, w : w + 14] for image, (t, w) in zip(whole, places[-1], strict=True)]
        assert np.array_equal(decoded(betons / "train.beton", quarter, 14, everything, epoch), np.stack(windows))
    assert sum(a == b for a, b in zip(*places, strict=True)) < 15  # of 225 places; 2 are expected


# Stock FFCV in a process of its own: it compiles for seconds, and leaves threads behind.
STOCK = """
import sys, numpy as np
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader, OrderOption
path, size, ratio, out = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
pipelines = {"image": [CenterCropRGBImageDecoder((size, size), ratio)], "label": [IntDecoder()]}
loader = Loader(path, batch_size=16, num_workers=1, order=OrderOption.SEQUENTIAL, pipelines=pipelines, os_cache=True)
images, labels = zip(*[(image.copy(), label.copy()) for image, label in loader])
np.savez(out, images=np.concatenate(images), labels=np.concatenate(labels)[:, 0])
"""


def test_validation_pixels_are_those_of_stock_ffcv(jpegs: Path, tmp_path: Path) -> None:
    """Decoded JPEGs of 64 sizes, cropped at the center and resized: FFCV's own Loader gives the same bytes."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": "omp", "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    command = [sys.executable, "-c", STOCK, str(jpegs), "64", "0.875", str(tmp_path / "stock.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "stock.npz") as stock:
        assert np.array_equal(decoded(jpegs, CenterCrop(0.875), 64, np.arange(JPEGS)), stock["images"])
        assert np.array_equal(open_beton(jpegs).labels, stock["labels"])


def kolmogorov_smirnov(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The greatest distance of two samples' distribution functions."""
    at = np.unique(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 500), (500, 60)])
def test_random_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Area, aspect ratio and place of 20,000 boxes; in the long images half of them are the fallback's."""
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
        distance = kolmogorov_smirnov(measure(*ours.T), measure(*theirs.T))
        assert distance < 2.3 * math.sqrt(2 / n)  # 1 in 20,000 of equal distributions are farther apart


@pytest.mark.parametrize("ratio", [(0.75, 4 / 3), (0.2, 0.3), (3.0, 5.0), (1.0, 1.0)])
def test_random_crops_stay_inside_their_images(ratio: tuple[float, float]) -> None:
    """Down to images of one pixel, and those one pixel high or wide, which hardly any box fits."""
    sides = np.array([1, 2, 3, 7, 40, 499, 500])
    height, width, epoch = (values.ravel() for values in np.meshgrid(sides, sides, np.arange(50)))
    top, left, h, w = RandomCrop(1, (0.08, 1.0), ratio).boxes(epoch, np.arange(len(epoch)), height, width)
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_random_crops_never_change() -> None:
    """Known boxes of some samples and epochs, 1 x 500 pixels among them: no later version moves them silently."""
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
    """Of wide, high and tiny images; half a pixel goes to the right and below."""
    height, width = np.array([256, 300, 400, 1, 5]), np.array([256, 400, 301, 9, 4])
    boxes = CenterCrop(0.875).boxes(np.zeros(5, np.int64), np.arange(5), height, width)
    expected = [[16, 16, 224, 224], [19, 69, 262, 262], [68, 19, 263, 263], [0, 4, 1, 1], [1, 0, 3, 3]]
    assert np.stack(boxes, axis=1).tolist() == expected


# -------------------------------------------------------------------------------------------------------------- faults


def patch(path: Path, offset: int, content: bytes) -> bytes:
    """Overwrites bytes in place; returns what was there."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(len(content))
        file.seek(offset)
        file.write(content)
    return before


def patch_manifest(path: Path, **changes: Any) -> None:
    manifest = manifest_path(path)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 4])
def test_an_image_that_cannot_be_decoded_ends_the_run_by_name(workers: int, copy: Path) -> None:
    """The error names file, sample and offset, comes in its turn and leaves no thread; FFCV's loader would hang."""
    cfg = with_data(replace(small_config(copy), global_batch=8), workers=workers)
    place = 37
    bad = int(Order(cfg.seed, JPEGS).permutation(0)[place])
    offset = int(open_beton(copy).offset[bad])
    patch(copy, offset, bytes(64))
    batches = TrainData(cfg, world()).batches(0, 100)
    for _ in range(place // 8):
        next(batches)
    with pytest.raises(DecodeError, match=rf"{copy}: sample {bad}, \d+ bytes at offset {offset}"):
        next(batches)
    assert decoding_threads() == []
    with pytest.raises(DecodeError, match=f"sample {bad},"):
        kept(ValData(cfg, world()).batches())
    assert decoding_threads() == []


@pytest.mark.timeout(60)
def test_a_jpeg_that_is_cut_short_is_an_error(copy: Path) -> None:
    """Its first half is whole; FFCV itself would show gray below it."""
    beton = open_beton(copy)
    size = int(beton.size[5])
    patch(copy, int(beton.offset[5]) + size // 2, bytes(size - size // 2))
    with pytest.raises(DecodeError, match="sample 5,"):
        decoded(copy, CenterCrop(1.0), 28, np.arange(JPEGS))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 24)


def cut_short_and_manifest_too(path: Path) -> None:
    cut_short(path)
    patch_manifest(path, bytes=path.stat().st_size)


def lose_the_manifest(path: Path) -> None:
    manifest_path(path).unlink()


def lose_the_file(path: Path) -> None:
    path.unlink()


def another_format(path: Path) -> None:
    patch_manifest(path, format="vit-beton-99")


def half_a_manifest(path: Path) -> None:
    os.truncate(manifest_path(path), 100)


def no_text(path: Path) -> None:
    manifest_path(path).write_bytes(b"\xff\xfe")


def a_list(path: Path) -> None:
    manifest_path(path).write_text("[]")


def a_key_is_missing(path: Path) -> None:
    manifest = json.loads(manifest_path(path).read_text())
    del manifest["sha256"]
    manifest_path(path).write_text(json.dumps(manifest))


HEADER, FIELD, SAMPLE = 24, 1041, 24  # bytes


def label_too_high(path: Path) -> None:
    patch(path, HEADER + 2 * FIELD + 9 * SAMPLE + 16, (CLASSES).to_bytes(8, "little"))


def label_below_zero(path: Path) -> None:
    patch(path, HEADER + 2 * FIELD + 9 * SAMPLE + 16, b"\xff" * 8)


def fields_exchanged(path: Path) -> None:
    image = patch(path, HEADER, bytes(17))
    patch(path, HEADER, patch(path, HEADER + FIELD, image))


def more_samples_than_the_manifest_says(path: Path) -> None:
    patch_manifest(path, samples=JPEGS - 1)


FAULTS = [
    (cut_short, "bytes; its manifest says"),
    (cut_short_and_manifest_too, "is damaged"),
    (lose_the_manifest, "json does not exist; python -m data_prep.write_beton makes it"),
    (lose_the_file, "is missing"),
    (another_format, "has format 'vit-beton-99'; vit-beton-1 is known"),
    (half_a_manifest, "json is damaged"),
    (no_text, "json is damaged"),
    (a_list, "has format None"),
    (a_key_is_missing, "no 'sha256'"),
    (label_too_high, "sample 9 of 64"),
    (label_below_zero, "sample 9 of 64"),
    (fields_exchanged, "expected an FFCV file of version 2 with an image and an integer label"),
    (more_samples_than_the_manifest_says, "is damaged"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_faulty_file_is_refused_by_name(fault: Any, message: str, copy: Path) -> None:
    """Before the first step, with the file's name and what is wrong."""
    cfg = small_config(copy)
    fault(copy)
    for kind in (TrainData, ValData):
        with pytest.raises(ValueError, match=message) as caught:
            kind(cfg, world())
        assert str(copy) in str(caught.value)


@pytest.mark.parametrize("num_classes", [CLASSES - 1, CLASSES + 1])
def test_a_model_for_other_classes_is_refused(num_classes: int, jpegs: Path) -> None:
    """A head of the wrong width would train without a word, or fail deep inside of CUDA."""
    cfg = small_config(jpegs)
    cfg = replace(cfg, model=replace(cfg.model, num_classes=num_classes))
    for kind in (TrainData, ValData):
        with pytest.raises(ValueError, match=f"num_classes is {num_classes}, but {jpegs} has {CLASSES} classes"):
            kind(cfg, world())


def flip_bits(copy: Path, regions: list[tuple[int, int]]) -> dict[str, int]:
    """What came of one flipped bit in each region, a start and a length, put right again after."""
    random = np.random.default_rng(0)
    seen = {"refused": 0, "opened": 0}
    for start, length in regions:
        offset = start + int(random.integers(length))
        (byte,) = patch(copy, offset, b"\0")
        patch(copy, offset, bytes([byte ^ 1 << int(random.integers(8))]))
        try:
            decoded(copy, CenterCrop(1.0), 8, np.arange(JPEGS))
            seen["opened"] += 1
        except (ValueError, DecodeError) as error:
            assert str(copy) in str(error)  # noqa: PT017
            seen["refused"] += 1
        patch(copy, offset, bytes([byte]))
    return seen


def test_no_flipped_bit_of_a_file_s_tables_crashes_a_run(copy: Path) -> None:
    """Each is refused by the file's name or decodes inside of the file's bounds: FFCV's C code never runs astray."""
    table = copy.stat().st_size - JPEGS * 24
    regions = [
        (0, HEADER),
        (HEADER, 17),
        (HEADER + FIELD, 17),
        (HEADER + 2 * FIELD, JPEGS * SAMPLE),
        (table, JPEGS * 24),
    ]

    (seen,) = run_ranks(1, flip_bits, copy, regions * 60)  # in a process of its own: its death is a result too
    assert isinstance(seen, dict), f"killed by signal {-seen}"
    assert min(seen.values()) > 50  # some bits mean nothing
    assert decoded(copy, CenterCrop(1.0), 8, np.arange(JPEGS)).any()  # all is as it was: the flips were the reason


def consume_a_little(data: TrainData, how: str) -> None:
    batches = data.batches(0, 1000)
    next(batches)
    if how == "closed":
        batches.close()
    if how == "raised":
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["closed", "forgotten", "raised"])
def test_data_left_in_the_middle_leaves_no_thread(how: str, jpegs: Path) -> None:
    """Whether it is closed, only forgotten, or an exception passes through the loop."""
    cfg = with_data(small_config(jpegs), workers=3)
    data = TrainData(cfg, world())
    batches = data.batches(0, 1000)
    next(batches)
    assert len(decoding_threads()) == 3
    batches.close()
    try:
        consume_a_little(data, how)
    except KeyboardInterrupt as error:
        error.__traceback__ = None  # it holds the frame, and this the iterator
    assert decoding_threads() == []


def test_two_hundred_early_ends_cost_no_memory(jpegs: Path) -> None:
    """FFCV's loader leaks a thread and its buffers each time, https://github.com/libffcv/ffcv/issues/393."""
    cfg = with_data(replace(small_config(jpegs), global_batch=16), workers=2)
    cfg = replace(cfg, model=replace(cfg.model, image_size=140))  # 0.9 MB a batch
    data, process = TrainData(cfg, world()), psutil.Process()
    for i in range(210):
        if i == 10:
            gc.collect()
            before = process.memory_info().rss
        consume_a_little(data, "forgotten")
    assert decoding_threads() == []
    assert process.memory_info().rss - before < 25e6  # 380 MB if the buffers were kept


def test_reading_data_needs_no_compiling() -> None:
    """ffcv and numba are never imported for training: they take 4 to 5 s of every start and every restart."""
    code = "import sys, vit.data.loader; sys.exit(repr([m for m in ('ffcv', 'numba', 'cv2') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
