"""The data loader: batches from any step on, decoded ahead by threads into pinned memory.

FFCV's own `Loader` does not meet this project's requirements: its crops are not reproducible, it cannot start in the
middle of an epoch or distribute an epoch evenly over ranks, an exception in its thread hangs the consumer, and leaving
it early leaks a thread and its buffers (https://github.com/libffcv/ffcv/issues/393).  This loader uses FFCV's format
(`beton.py`), a decoder in C (`decode.py`) and a thread pool that works a few batches ahead.
"""

import functools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import DataConfig
from vit.data.beton import open_beton
from vit.data.class_names import ClassMatch
from vit.data.damage import DamagedSamples, check_pages
from vit.data.dataset_manifest import check_classes
from vit.data.decode import CenterCrop, Decoder, RandomCrop, decoder_note, resolve_decoder
from vit.data.order import BLOCK, Order, Views
from vit.data.storage import free_memory
from vit.distributed.world import World
from vit.run.counts import counted
from vit.run.progress import show

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Samples on the device.  The images are overwritten when the next batch is requested."""

    images: Tensor  # (B, S, S, 3) uint8
    labels: Tensor  # (B,) int64; -1: padding or a skipped damaged sample, to be ignored
    samples: Ints  # index of each sample in the file, without padding; -1: a skipped damaged sample
    seconds: float = 0.0  # that each of the threads worked on it, on average: the time of a batch if all of them do


@dataclass(frozen=True)
class BatchPlan:
    """The work of the decoding threads for one batch."""

    views: Callable[[], Views]  # the samples of the batch; a function, because sorting a new pass takes a while
    size: int  # S, side of the decoded images in pixels; at most that of the reader
    file_task: Callable[[], None] | None = None  # read-ahead and digest checks of the file that are due with this batch


class _Buffer:
    """Memory for one batch of images of at most `size` x `size` pixels, pinned if the device is a GPU."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.images = torch.empty((batch, size, size, 3), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.labels = torch.empty(batch, dtype=torch.int64, pin_memory=device.type == "cuda")
        # The copy to the GPU is done.  Threads that wait for it sleep, and leave their cores to others.
        self.copied = torch.cuda.Event(blocking=True) if device.type == "cuda" else None

    def images_of(self, size: int) -> Tensor:
        """A view of the memory for images of this size: (B, size, size, 3), contiguous."""
        shape = (len(self.images), size, size, 3)
        return self.images.view(-1)[: math.prod(shape)].view(shape)


class BatchReader:
    """Decodes batches of images of at most `size` x `size` pixels with `workers` threads, `prefetch` batches ahead."""

    def __init__(
        self, decoder: Decoder, batch: int, size: int, workers: int, prefetch: int, device: torch.device
    ) -> None:
        self.decoder = decoder
        self.batch = batch
        self.size = size
        self.workers = workers
        self.prefetch = prefetch
        self.device = device

    def read(self, plans: Iterable[BatchPlan]) -> Iterator[Batch]:
        """Yields one batch per plan.  The threads end when the iterator is exhausted, closed or garbage-collected.

        Raises what a thread raised, e.g. DecodeError for a damaged sample, DamagedDataError for a damaged page.
        """
        free = [_Buffer(self.batch, self.size, self.device) for _ in range(self.prefetch + 1)]
        pending: deque[_PendingBatch] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for plan in plans:
                pending.append(self._start(pool, plan, free.pop()))
                if len(pending) > self.prefetch:
                    yield from self._finish(pending.popleft(), free)
            while pending:
                yield from self._finish(pending.popleft(), free)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, plan: BatchPlan, buffer: _Buffer) -> "_PendingBatch":
        views = pool.submit(plan.views)
        edges = np.linspace(0, self.batch, self.workers + 1).astype(int).tolist()
        # Tasks start in the order of submission, so `views` starts before the parts that wait for it.
        images = buffer.images_of(plan.size)
        parts = [pool.submit(self._decode, views, buffer, images, a, b) for a, b in pairwise(edges)]
        return _PendingBatch(buffer, images, parts, pool.submit(plan.file_task) if plan.file_task else None)

    def _decode(
        self, future: Future[Views], buffer: _Buffer, images: Tensor, start: int, stop: int
    ) -> tuple[Ints, float]:
        """The decoded samples, and the seconds that it took."""
        if buffer.copied is not None:
            buffer.copied.synchronize()  # in this thread, so that no training step waits for it
        views, samples = future.result()
        part = slice(start, min(stop, len(samples)))
        began = time.perf_counter()
        decoded = self.decoder.decode(views[part], samples[part], images.numpy()[part])
        buffer.labels.numpy()[part] = np.where(decoded < 0, -1, self.decoder.beton.labels[decoded])
        buffer.labels.numpy()[max(start, len(samples)) : stop] = -1
        return decoded, time.perf_counter() - began

    def _finish(self, batch: "_PendingBatch", free: list[_Buffer]) -> Iterator[Batch]:
        parts, seconds = zip(*(part.result() for part in batch.parts), strict=True)
        decoded = np.concatenate(parts)
        if batch.file_task is not None:
            batch.file_task.result()
        buffer = batch.buffer
        images = batch.images.to(self.device, non_blocking=True)
        labels = buffer.labels.to(self.device, non_blocking=True)
        if buffer.copied is not None:
            buffer.copied.record()
        yield Batch(images, labels, decoded, sum(seconds) / self.workers)
        free.append(buffer)


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that is being decoded."""

    buffer: _Buffer
    images: Tensor  # of the buffer, in the size of this batch: (B, S, S, 3)
    parts: list[Future[tuple[Ints, float]]]  # the samples decoded by each thread, and its seconds
    file_task: Future[None] | None


class TrainData:
    """The training set, as batches of this rank's micro-batches.

    `alive` is called while the file is read into memory (`data.cache: memory`), as a sign of progress.
    """

    def __init__(self, cfg: Config, world: World, alive: Callable[[], None] = lambda: None) -> None:
        self.cfg = cfg
        self.world = world
        self.beton = open_beton(cfg.data.train, cfg.data.cache, world, alive)
        check_classes(self.beton.path, self.beton.classes, cfg.model.num_classes)
        self.samples = min(cfg.data.limit or len(self.beton), len(self.beton))
        self.schedule = RunSchedule(cfg, self.samples)
        self.order = Order(cfg.seed, self.samples, cfg.data.shuffle_window, cfg.data.repeats)
        self.damaged = DamagedSamples(self.beton)
        self.decoder = resolve_decoder(cfg.data.decoder, cfg.data.interpolation)
        crop = RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio)
        on_damage = self.damaged.replace if cfg.data.on_bad == "skip" else None
        decoder = Decoder(self.beton, crop, self.decoder, on_damage, cfg.data.interpolation)
        batch, workers = cfg.global_batch // world.size, decoding_threads(cfg.data, world)
        self.reader = BatchReader(decoder, batch, cfg.model.image_size, workers, cfg.data.prefetch, world.device)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This rank's micro-batches of each step from `start` to `stop` - 1, concatenated to one batch per step."""
        for step, batch in enumerate(self.reader.read(self._plan(s, s == start) for s in range(start, stop)), start):
            yield batch
            if step + 1 == self.cfg.steps(1, self.samples) and self.cfg.data.verify == "first-epoch":
                self._report_check()

    def _report_check(self) -> None:
        """Says that the first epoch has found no damaged page; it would have ended the run."""
        if self.world.rank == 0:
            pages = counted(len(self.beton.pages), "page")
            show(f"{self.beton.path.name}: {pages} checked, all digests are right", lasting=True)

    def views(self, step: int, micro_batches: Sequence[int]) -> Views:
        """The samples of these micro-batches of a step, one micro-batch after the other."""
        cfg = self.schedule.config(step)
        index, offset = np.array(micro_batches)[:, None], np.arange(cfg.micro_batch)  # positions are (micro-batches, m)
        # Repeats of a sample go to different micro-batches, as far as there are any; see also `Config.mix_distance`.
        strided = cfg.data.repeats > 1
        positions = index + cfg.micro_batches * offset if strided else index * cfg.micro_batch + offset
        return self.order.at(step * cfg.global_batch + positions.ravel())

    def _plan(self, step: int, first: bool) -> BatchPlan:
        cfg = self.schedule.config(step)
        views = functools.partial(self.views, step, self.world.my_micro_batches(cfg.micro_batches))
        return BatchPlan(views, decoded_size(self.cfg, cfg), functools.partial(self._read_ahead_and_check, step, first))

    def _read_ahead_and_check(self, step: int, first: bool) -> None:
        """This rank's share of the step's read-ahead hints and, in the first epoch, of the pages to check."""
        cfg, beton, world = self.cfg, self.beton, self.world
        blocks = self.order.blocks_ahead(step * cfg.global_batch, (step + 1) * cfg.global_batch, first)
        for block in blocks[world.local_rank :: world.local_size]:
            inside = slice(block * BLOCK, (block + 1) * BLOCK)
            start, stop = beton.offset[inside].min(), (beton.offset[inside] + beton.size[inside]).max()
            beton.storage.will_need(int(start), int(stop - start))
        steps, pages = cfg.steps(1, self.samples), len(beton.pages)
        if cfg.data.verify == "first-epoch" and step < steps:
            check_pages(beton, range(step * pages // steps, (step + 1) * pages // steps)[world.rank :: world.size])


def decoded_size(run: Config, step: Config) -> int:
    """Side of the images that are decoded for a step with this config; augmentation makes larger ones small."""
    return (run if run.data.small_images == "lanczos" else step).model.image_size


class ValData:
    """The validation set, each image exactly once across all ranks.

    With `match`, it may have other classes than the model: `logits`, (D,) int64 on the device, are those of the model's
    logits that its D classes have; None: all of them, in order.
    """

    def __init__(
        self, cfg: Config, world: World, match: ClassMatch | None = None, alive: Callable[[], None] = lambda: None
    ) -> None:
        self.cfg = cfg.data
        self.world = world
        self.beton = open_beton(cfg.data.val, cfg.data.cache, world, alive)
        self.logits: Tensor | None = None
        if match is None:
            check_classes(self.beton.path, self.beton.classes, cfg.model.num_classes)
        elif not match.is_identity:
            self.logits = torch.tensor(match.logits, device=world.device)
        self.samples = min(cfg.data.limit or len(self.beton), len(self.beton))
        self.batch = cfg.micro_batch
        self._check_pages_next = cfg.data.verify == "first-epoch"
        self.damaged = DamagedSamples(self.beton)
        on_damage = self.damaged.skip if cfg.data.on_bad == "skip" else None
        crop, interpolation = CenterCrop(cfg.data.val_crop), cfg.data.interpolation
        backend = resolve_decoder(cfg.data.decoder, interpolation)
        decoder = Decoder(self.beton, crop, backend, on_damage, interpolation)
        size, workers = cfg.model.image_size, decoding_threads(cfg.data, world)
        self.reader = BatchReader(decoder, self.batch, size, workers, cfg.data.prefetch, world.device)

    @property
    def total_batches(self) -> int:
        """Batches of the whole set; the last one may be padded."""
        return -(-self.samples // self.batch)

    @property
    def batches_per_rank(self) -> int:
        """Batches of each rank; those after the end of the set contain only padding."""
        return -(-self.total_batches // self.world.size)

    def batches(self) -> Iterator[Batch]:
        """This rank's batches: of W ranks, rank r gets the batches b with b mod W = r.

        The contents of a batch do not depend on the number of ranks.
        """
        mine = range(self.world.rank, self.batches_per_rank * self.world.size, self.world.size)
        check, self._check_pages_next = self._check_pages_next, False
        return self.reader.read(self._plan(b, check) for b in mine)

    def pixels(self, samples: Ints) -> NDArray[np.uint8]:
        """The pixels of samples (B,) as in `batches`: (B, S, S, 3)."""
        size = self.reader.size
        out = np.zeros((len(samples), size, size, 3), np.uint8)
        self.reader.decoder.decode(np.zeros_like(samples), samples, out)
        return out

    def _plan(self, b: int, check: bool) -> BatchPlan:
        samples = np.arange(b * self.batch, max(b * self.batch, min((b + 1) * self.batch, self.samples)))
        pages, batches = len(self.beton.pages), self.total_batches
        mine = range(b * pages // batches, (b + 1) * pages // batches)
        file_task = functools.partial(check_pages, self.beton, mine) if check and b < batches else None
        return BatchPlan(lambda: Views(np.zeros_like(samples), samples), self.reader.size, file_task)


def storage_summary(cfg: DataConfig, *data: TrainData | ValData) -> str:
    """For the user: how the files are read, whether they fit into memory, and by what they are decoded if not by us."""
    size, free = sum(each.beton.bytes for each in data), free_memory()
    files = " and ".join(each.beton.path.name for each in data)
    check = "; digests are checked in the first epoch" if cfg.verify == "first-epoch" else ""
    if cfg.cache == "memory":
        return f"data: {files} ({size / 1e9:.1f} GB{check}), held in memory{decoder_note(cfg.decoder)}"
    access = "read through the page cache" if cfg.cache == "os" else "read by each rank"
    if size <= free:
        fits = f"fits into {free / 1e9:.0f} GB of free memory"
    else:
        fits = f"does not fit into {free / 1e9:.0f} GB of free memory"
        fits += "" if cfg.shuffle_window else "; use --data.shuffle_window 32768 for mostly sequential reads"
    return f"data: {files} ({size / 1e9:.1f} GB{check}), {access}, {fits}{decoder_note(cfg.decoder)}"


def decoding_threads(cfg: DataConfig, world: World) -> int:
    """Decoding threads per rank: `data.workers`, or this rank's share of the cores that the job may use on the node."""
    return cfg.workers or max(1, len(os.sched_getaffinity(0)) // world.local_size)
