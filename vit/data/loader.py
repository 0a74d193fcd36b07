"""Batches from any step: threads decode ahead into pinned memory, in the order of the stream.

FFCV's own `Loader` cannot hold what this project promises: its crops cannot be reproduced, an epoch cannot be entered
in the middle or shared out evenly, an exception in its thread hangs the consumer, and leaving it early leaks a thread
and its buffers (https://github.com/libffcv/ffcv/issues/393).  So FFCV's format and its C decoder are used
(`beton.py`, `decode.py`), and the loop around them is ours: a pool of threads, a few batches ahead.
"""

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

from vit.config import Config, DataConfig
from vit.data.beton import open_beton
from vit.data.decode import CentreCrop, Decoder, RandomCrop, resolve
from vit.data.manifest import check_classes
from vit.data.order import Order
from vit.world import World

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Samples on the device.  The images of a batch are overwritten once the next one has been asked for."""

    images: Tensor  # (B, S, S, 3) uint8
    labels: Tensor  # (B,) int64; -1: padding, to be left out
    samples: Ints  # (B,), each sample's index in the file


@dataclass(frozen=True)
class _Wanted:
    """What a batch holds; found out in a worker thread, because sorting an epoch takes a while."""

    epochs: Ints  # (B,)
    samples: Ints  # (B,)


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

    def read(self, wanted: Iterable[Callable[[], _Wanted]]) -> Iterator[Batch]:
        """A batch for each of `wanted`.  Its threads end with the iterator, however it is left.

        Raises what a thread raised: DecodeError names a sample that is no image.
        """
        free = [_Buffer(self.batch, self.decoder.size, self.device) for _ in range(self.prefetch + 1)]
        ahead: deque[tuple[_Buffer, Future[_Wanted], list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for want in wanted:
                ahead.append(self._start(pool, want, free.pop()))
                if len(ahead) > self.prefetch:
                    yield from self._finish(ahead.popleft(), free)
            while ahead:
                yield from self._finish(ahead.popleft(), free)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, pool: ThreadPoolExecutor, want: Callable[[], _Wanted], buffer: _Buffer
    ) -> tuple[_Buffer, Future[_Wanted], list[Future[None]]]:
        plan = pool.submit(want)
        edges = np.linspace(0, self.batch, self.workers + 1).astype(int).tolist()
        # Threads take tasks in the order of submission, so the plan is made before or while a part waits for it.
        parts = [pool.submit(self._decode, plan, buffer, a, b) for a, b in pairwise(edges)]
        return buffer, plan, parts

    def _decode(self, plan: Future[_Wanted], buffer: _Buffer, start: int, stop: int) -> None:
        if buffer.copied is not None:
            buffer.copied.synchronize()  # here, where it holds up no step
        wanted = plan.result()
        part = slice(start, min(stop, len(wanted.samples)))
        self.decoder.decode(wanted.epochs[part], wanted.samples[part], buffer.images.numpy()[part])
        buffer.labels.numpy()[part] = self.decoder.beton.labels[wanted.samples[part]]
        buffer.labels.numpy()[max(start, len(wanted.samples)) : stop] = -1

    def _finish(
        self, batch: tuple[_Buffer, Future[_Wanted], list[Future[None]]], free: list[_Buffer]
    ) -> Iterator[Batch]:
        buffer, plan, parts = batch
        for part in parts:
            part.result()
        images = buffer.images.to(self.device, non_blocking=True)
        labels = buffer.labels.to(self.device, non_blocking=True)
        if buffer.copied is not None:
            buffer.copied.record()
        yield Batch(images, labels, plan.result().samples)
        free.append(buffer)


class TrainData:
    """The training set as batches of this rank's shards."""

    def __init__(self, cfg: Config, world: World) -> None:
        self.cfg = cfg
        check_classes(cfg.data.train, cfg.model.num_classes)
        self.beton = open_beton(cfg.data.train)
        self.order = Order(cfg.seed, len(self.beton))
        shards = world.my_shards(cfg.shards)
        self.first, self.batch = shards.start * cfg.micro_batch, len(shards) * cfg.micro_batch
        crop = RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio)
        self.decoder = resolve(cfg.data.decoder)
        decoder = Decoder(self.beton, crop, cfg.model.image_size, self.decoder)
        self.reader = Reader(decoder, self.batch, threads(cfg.data, world), cfg.data.prefetch, world.device)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This rank's part of the batches of steps `start` to `stop`, shard after shard."""
        return self.reader.read(self._wanted(step) for step in range(start, stop))

    def _wanted(self, step: int) -> Callable[[], _Wanted]:
        first = step * self.cfg.global_batch + self.first
        return lambda: _Wanted(*self.order.slice(first, first + self.batch))


class ValData:
    """The validation set, each image exactly once over all ranks."""

    def __init__(self, cfg: Config, world: World) -> None:
        self.world = world
        check_classes(cfg.data.val, cfg.model.num_classes)
        self.beton = open_beton(cfg.data.val)
        self.batch = cfg.micro_batch
        crop = CentreCrop(cfg.data.val_crop)
        decoder = Decoder(self.beton, crop, cfg.model.image_size, resolve(cfg.data.decoder))
        self.reader = Reader(decoder, self.batch, threads(cfg.data, world), cfg.data.prefetch, world.device)

    @property
    def count(self) -> int:
        """Batches of the whole set; the last one may be padded."""
        return -(-len(self.beton) // self.batch)

    @property
    def rounds(self) -> int:
        """Batches that each rank gets; those after the set's end are padding alone."""
        return -(-self.count // self.world.size)

    def batches(self) -> Iterator[Batch]:
        """Batch b goes to rank b mod W.  What a batch holds does not depend on the number of ranks."""
        mine = range(self.world.rank, self.rounds * self.world.size, self.world.size)
        return self.reader.read(self._wanted(b) for b in mine)

    def _wanted(self, b: int) -> Callable[[], _Wanted]:
        samples = np.arange(b * self.batch, max(b * self.batch, min((b + 1) * self.batch, len(self.beton))))
        return lambda: _Wanted(np.zeros_like(samples), samples)


def threads(cfg: DataConfig, world: World) -> int:
    """Decoding threads of a rank: as configured, or its share of the cores that Slurm gives, not of all there are."""
    return cfg.workers or max(1, len(os.sched_getaffinity(0)) // world.local_size)
