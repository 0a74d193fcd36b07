"""The order of samples: an infinite stream that depends only on the seed, not on ranks, workers or interruptions.

The stream is one shuffled pass over the data set after another; the batch of step s is the stream from position s·B to
(s+1)·B.  A batch may span two passes, so that no sample is dropped, padded or seen twice in an epoch.  Any batch is
computed directly, without iterating over the batches before it.
"""

import functools
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit.random_keys import Stream, keys

Ints = NDArray[np.int64]

BLOCK = 64  # consecutive samples of the file that stay in one window: 7 MB of ImageNet, one sequential read


class Views(NamedTuple):
    """Samples with their view numbers: 2 x (B,).

    A view number counts how often the stream has contained the sample before; (seed, view, sample) determines its crop.
    """

    views: Ints
    samples: Ints


class Order:
    """The stream of a data set of `samples` images.

    `window`: 0 shuffles the whole set.  Otherwise the blocks of BLOCK consecutive samples are shuffled, and then the
    samples within each window of `window // BLOCK` blocks: FFCV's quasi-random order, for files larger than memory.
    `repeats`: each sample occurs this many times in a row, for repeated augmentation: Hoffer et al. 2020,
    https://arxiv.org/abs/1901.09335.
    """

    def __init__(self, seed: int, samples: int, window: int = 0, repeats: int = 1) -> None:
        self.seed = seed
        self.samples = samples
        self.window = window
        self.repeats = repeats
        self._lock = threading.Lock()  # one thread sorts a new pass while the others wait for it
        self._sorted = functools.lru_cache(maxsize=2)(self._sort)
        self.blocks = functools.lru_cache(maxsize=2)(self._blocks)

    def _sort(self, pass_index: int) -> Ints:
        samples = np.arange(self.samples)
        key = keys(Stream.ORDER, self.seed, pass_index, samples)
        if not self.window:
            return np.argsort(key, kind="stable")
        rank = np.argsort(self.blocks(pass_index))  # position of each block in the shuffled order of blocks
        return np.lexsort((key, rank[samples // BLOCK] // (self.window // BLOCK)))

    def _blocks(self, pass_index: int) -> Ints:
        """The file's blocks in the order in which a pass assigns them to windows: (blocks,)."""
        key = keys(Stream.BLOCKS, self.seed, pass_index, np.arange(-(-self.samples // BLOCK)))
        return np.argsort(key, kind="stable")

    def blocks_ahead(self, start: int, stop: int, include_current: bool = False) -> list[int]:
        """The blocks to read ahead while the stream advances from `start` to `stop`: those one window later.

        With `include_current`, also those of the window that contains `start`.  Empty if there are no windows.
        """
        if not self.window:
            return []
        blocks_per_pass, current = -(-self.samples // BLOCK), start // self.repeats
        window_start = current - current % self.samples % self.window
        begin = window_start if include_current else current + self.window
        passes, positions = np.divmod(np.array([begin, stop // self.repeats + self.window]), self.samples)
        first, last = (passes * blocks_per_pass + positions // BLOCK).tolist()
        return [int(self.blocks(block // blocks_per_pass)[block % blocks_per_pass]) for block in range(first, last)]

    def permutation(self, pass_index: int) -> Ints:
        """The order of one pass, each sample once: (samples,).  Sorting by 64-bit hashes is a shuffle without state."""
        with self._lock:
            return self._sorted(pass_index)

    def at(self, positions: Ints) -> Views:
        """The samples at these positions of the stream: (B,) -> 2 x (B,)."""
        passes, offsets = np.divmod(positions, self.samples * self.repeats)
        samples = np.empty_like(positions)
        for pass_index in np.unique(passes).tolist():
            mask = passes == pass_index
            samples[mask] = self.permutation(pass_index)[offsets[mask] // self.repeats]
        return Views(passes * self.repeats + offsets % self.repeats, samples)
