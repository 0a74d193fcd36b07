"""Batches from any step: threads decode ahead into pinned memory, in the order of the stream.

FFCV's own `Loader` cannot hold what this project promises: its crops cannot be reproduced, an epoch cannot be entered
in the middle or shared out evenly, an exception in its thread hangs the consumer, and leaving it early leaks a thread
and its buffers (https://github.com/libffcv/ffcv/issues/393).  So FFCV's format and its C decoder are used
(`beton.py`, `decode.py`), and the loop around them is ours: a pool of threads, a few batches ahead.
"""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.config.schema import Config, DataConfig
from vit.data.beton import open_beton
from vit.data.damage import Damage, check_pages
from vit.data.dataset_manifest import check_classes
from vit.data.decode import CenterCrop, Decoder, RandomCrop, resolve
from vit.data.order import BLOCK, Order, Views
from vit.data.storage import free_memory
from vit.distributed.world import World

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Samples on the device.  The images of a batch are overwritten once the next one has been asked for."""

    images: Tensor  # (B, S, S, 3) uint8
    labels: Tensor  # (B,) int64; -1: padding or damaged, to be left out
    samples: Ints  # (B,), each sample's index in the file; -1: damaged, and left out


@dataclass(frozen=True)
class Plan:
    """What worker threads are to do for a batch."""

    views: Callable[[], Views]  # what it holds; sorting an epoch takes a while
    beside: Callable[[], None] | None = None  # what else is due then


class _Buffer:
    """Memory for one batch, pinned if it goes to a GPU."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.images = torch.empty((batch, size, size, 3), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.labels = torch.empty(batch, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.copied = torch.cuda.Event() if device.type == "cuda" else None  # the GPU has read it


class Reader:
    """Decodes batch after batch with `workers` threads, `prefetch` batches ahead."""

    def __init__(self, decoder: Decoder, batch: int, workers: int, prefetch: int, device: torch.device) -> None:
        self.decoder = decoder
        self.batch = batch
        self.workers = workers
        self.prefetch = prefetch
        self.device = device

    def read(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """A batch for each plan.  Its threads end with the iterator, however it is left.

        Raises what a thread raised: DecodeError names a sample that is no image.
        """
        free = [_Buffer(self.batch, self.decoder.size, self.device) for _ in range(self.prefetch + 1)]
        ahead: deque[_Started] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for plan in plans:
                ahead.append(self._start(pool, plan, free.pop()))
                if len(ahead) > self.prefetch:
                    yield from self._finish(ahead.popleft(), free)
            while ahead:
                yield from self._finish(ahead.popleft(), free)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, plan: Plan, buffer: _Buffer) -> "_Started":
        views = pool.submit(plan.views)
        edges = np.linspace(0, self.batch, self.workers + 1).astype(int).tolist()
        # Threads take tasks in the order of submission, so the views are found before or while a part waits for them.
        parts = [pool.submit(self._decode, views, buffer, a, b) for a, b in pairwise(edges)]
        return _Started(buffer, parts, pool.submit(plan.beside) if plan.beside else None)

    def _decode(self, found: Future[Views], buffer: _Buffer, start: int, stop: int) -> Ints:
        if buffer.copied is not None:
            buffer.copied.synchronize()  # here, where it holds up no step
        views, samples = found.result()
        part = slice(start, min(stop, len(samples)))
        shown = self.decoder.decode(views[part], samples[part], buffer.images.numpy()[part])
        buffer.labels.numpy()[part] = np.where(shown < 0, -1, self.decoder.beton.labels[shown])
        buffer.labels.numpy()[max(start, len(samples)) : stop] = -1
        return shown

    def _finish(self, batch: "_Started", free: list[_Buffer]) -> Iterator[Batch]:
        shown = np.concatenate([part.result() for part in batch.parts])
        if batch.beside is not None:
            batch.beside.result()
        buffer = batch.buffer
        images = buffer.images.to(self.device, non_blocking=True)
        labels = buffer.labels.to(self.device, non_blocking=True)
        if buffer.copied is not None:
            buffer.copied.record()
        yield Batch(images, labels, shown)
        free.append(buffer)


@dataclass(frozen=True)
class _Started:
    """A batch on its way."""

    buffer: _Buffer
    parts: list[Future[Ints]]
    beside: Future[None] | None


class TrainData:
    """The training set as batches of this rank's micro-batches."""

    def __init__(self, cfg: Config, world: World) -> None:
        self.cfg = cfg
        self.world = world
        check_classes(cfg.data.train, cfg.model.num_classes)
        self.beton = open_beton(cfg.data.train, cfg.data.cache, world)
        self.samples = min(cfg.data.limit or len(self.beton), len(self.beton))
        self.order = Order(cfg.seed, self.samples, cfg.data.shuffle_window, cfg.data.repeats)
        self.damage = Damage(self.beton)
        self.decoder = resolve(cfg.data.decoder, cfg.data.interpolation)
        crop = RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio)
        instead = self.damage.next_of_class if cfg.data.on_bad == "skip" else None
        size, how = cfg.model.image_size, cfg.data.interpolation
        decoder = Decoder(self.beton, crop, size, self.decoder, instead, how)
        batch = cfg.global_batch // world.size
        self.reader = Reader(decoder, batch, threads(cfg.data, world), cfg.data.prefetch, world.device)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This rank's part of the batches of steps `start` to `stop`, micro-batch after micro-batch."""
        return self.reader.read(self._plan(step, step == start) for step in range(start, stop))

    def _plan(self, step: int, first: bool) -> Plan:
        cfg, world = self.cfg, self.world
        index = np.array(world.my_micro_batches(cfg.micro_batches))[:, None]
        place = np.arange(cfg.micro_batch)
        # Repeats are dealt out like cards: within a micro-batch, mixup would mix an image with itself.
        dealt, in_a_row = index + cfg.micro_batches * place, index * cfg.micro_batch + place  # (micro-batches, m)
        places = dealt if cfg.data.repeats > 1 else in_a_row
        views = functools.partial(self.order.at, step * cfg.global_batch + places.ravel())
        return Plan(views, functools.partial(self._beside, step, first))

    def _beside(self, step: int, first: bool) -> None:
        """This rank's part of what the file as a whole wants: to be read ahead, and once to be checked."""
        cfg, beton, world = self.cfg, self.beton, self.world
        blocks = self.order.coming(step * cfg.global_batch, (step + 1) * cfg.global_batch, first)
        for block in blocks[world.local_rank :: world.local_size]:
            inside = slice(block * BLOCK, (block + 1) * BLOCK)
            start, stop = beton.offset[inside].min(), (beton.offset[inside] + beton.size[inside]).max()
            beton.storage.will_need(int(start), int(stop - start))
        steps, pages = cfg.steps(1, self.samples), len(beton.pages)
        if cfg.data.verify == "first-epoch" and step < steps:
            check_pages(beton, range(step * pages // steps, (step + 1) * pages // steps)[world.rank :: world.size])


class ValData:
    """The validation set, each image exactly once over all ranks."""

    def __init__(self, cfg: Config, world: World) -> None:
        self.cfg = cfg.data
        self.world = world
        check_classes(cfg.data.val, cfg.model.num_classes)
        self.beton = open_beton(cfg.data.val, cfg.data.cache, world)
        self.samples = min(cfg.data.limit or len(self.beton), len(self.beton))
        self.batch = cfg.micro_batch
        self._to_be_checked = cfg.data.verify == "first-epoch"
        self.damage = Damage(self.beton)
        instead = self.damage.left_out if cfg.data.on_bad == "skip" else None
        crop = CenterCrop(cfg.data.val_crop)
        size, how = cfg.model.image_size, cfg.data.interpolation
        decoder = Decoder(self.beton, crop, size, resolve(cfg.data.decoder, how), instead, how)
        self.reader = Reader(decoder, self.batch, threads(cfg.data, world), cfg.data.prefetch, world.device)

    @property
    def count(self) -> int:
        """Batches of the whole set; the last one may be padded."""
        return -(-self.samples // self.batch)

    @property
    def rounds(self) -> int:
        """Batches that each rank gets; those after the set's end are padding alone."""
        return -(-self.count // self.world.size)

    def batches(self) -> Iterator[Batch]:
        """Batch b goes to rank b mod W.  What a batch holds does not depend on the number of ranks."""
        mine = range(self.world.rank, self.rounds * self.world.size, self.world.size)
        check, self._to_be_checked = self._to_be_checked, False
        return self.reader.read(self._plan(b, check) for b in mine)

    def _plan(self, b: int, check: bool) -> Plan:
        samples = np.arange(b * self.batch, max(b * self.batch, min((b + 1) * self.batch, self.samples)))
        pages = range(b * len(self.beton.pages) // self.count, (b + 1) * len(self.beton.pages) // self.count)
        beside = functools.partial(check_pages, self.beton, pages) if check and b < self.count else None
        return Plan(lambda: Views(np.zeros_like(samples), samples), beside)


def storage_line(cfg: DataConfig, *data: TrainData | ValData) -> str:
    """For a person: how the files are read, and whether memory holds them."""
    size, free = sum(each.beton.bytes for each in data), free_memory()
    files = " and ".join(each.beton.path.name for each in data)
    if cfg.cache == "memory":
        return f"data: {files}, {size / 1e9:.1f} GB, are in memory"
    how = "through the page cache" if cfg.cache == "os" else "read piece by piece"
    fits = f"fits into {free / 1e9:.0f} GB of free memory"
    if size > free:
        fits = f"does not fit into {free / 1e9:.0f} GB of free memory"
        fits += "" if cfg.shuffle_window else "; --data.shuffle_window 32768 reads the disk in long pieces"
    return f"data: {files}, {size / 1e9:.1f} GB {how}, {fits}"


def threads(cfg: DataConfig, world: World) -> int:
    """Decoding threads of a rank: as configured, or its share of the cores that Slurm gives, not of all there are."""
    return cfg.workers or max(1, len(os.sched_getaffinity(0)) // world.local_size)
