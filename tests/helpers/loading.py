"""Reads batches of simulated ranks in this process, and damages files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vit.config.schema import Config
from vit.data.beton import open_beton
from vit.data.decode import CenterCrop, Decoder, RandomCrop
from vit.data.loader import Batch, TrainData
from vit.distributed.world import World

Ints = NDArray[np.int64]


def simulated_world(rank: int = 0, size: int = 1) -> World:
    """One rank of a world of `size` ranks on one node, without a process group."""
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"), local_rank=rank)


def with_data(cfg: Config, **changes: Any) -> Config:
    return replace(cfg, data=replace(cfg.data, **changes))


def copied_batches(batches: Iterator[Batch]) -> list[Batch]:
    """All batches; copies, because the loader overwrites a batch when the next one is requested."""
    return [Batch(b.images.clone(), b.labels.clone(), b.samples.copy()) for b in batches]


def train_stream(cfg: Config, ranks: int, start: int, stop: int) -> tuple[Ints, torch.Tensor, torch.Tensor]:
    """Samples, labels and pixels of steps `start` to `stop` - 1, of all ranks in the order of their micro-batches."""
    by_rank = [
        copied_batches(TrainData(cfg, simulated_world(rank, ranks)).batches(start, stop)) for rank in range(ranks)
    ]
    assert [len(batches) for batches in by_rank] == [stop - start] * ranks
    in_order = [batches[step] for step in range(stop - start) for batches in by_rank]
    return (
        np.concatenate([b.samples for b in in_order]),
        torch.cat([b.labels for b in in_order]),
        torch.cat([b.images for b in in_order]),
    )


def decoded(
    path: Path, crop: RandomCrop | CenterCrop, size: int, samples: Ints, epoch: int = 0, backend: str = "ffcv"
) -> NDArray[np.uint8]:
    """Decodes samples of a file: (B,) -> (B, size, size, 3)."""
    out = np.empty((len(samples), size, size, 3), np.uint8)
    Decoder(open_beton(path), crop, backend).decode(np.full(len(samples), epoch), samples, out)
    return out


def overwrite(path: Path, offset: int, content: bytes) -> bytes:
    """Overwrites bytes of a file; returns the previous ones."""
    with path.open("r+b") as file:
        file.seek(offset)
        previous = file.read(len(content))
        file.seek(offset)
        file.write(content)
    return previous


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Inverts one bit of a byte; a second call restores it."""
    (byte,) = overwrite(path, offset, b"\0")
    overwrite(path, offset, bytes([byte ^ 1 << bit]))
