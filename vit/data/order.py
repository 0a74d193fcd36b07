"""Which samples: a stream without end that depends on the seed alone, not on ranks, workers or where a run was stopped.

The stream is the data set in a random order, then in another, and so on; the batch of step s is the stream from s·B to
(s+1)·B.  A batch may straddle two passes, so no sample is ever dropped, padded or seen twice in an epoch, and any batch
of any epoch is found without walking through those before it.
"""

import functools
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit.random_keys import Stream, keys

Ints = NDArray[np.int64]

BLOCK = 64  # neighbors in the file that stay in one window: 7 MB of ImageNet, which a disk reads in one go


class Views(NamedTuple):
    """Samples, each with how often the stream has shown it before: with the seed, what keys its crop.  2 x (B,)."""

    views: Ints
    samples: Ints


class Order:
    """The stream of a data set of `samples` images.

    `window`: 0 shuffles all of them at once.  Else the file's blocks of neighbors are shuffled, and the images within
    `window // BLOCK` blocks at a time: FFCV's quasi-random order, for files that memory does not hold.
    `repeats`: each sample so many times in a row, as repeated augmentation wants it: Hoffer et al. 2020,
    https://arxiv.org/abs/1901.09335.
    """

    def __init__(self, seed: int, samples: int, window: int = 0, repeats: int = 1) -> None:
        self.seed = seed
        self.samples = samples
        self.window = window
        self.repeats = repeats
        self._lock = threading.Lock()  # threads that ask for a new epoch wait for one of them to sort it
        self._sorted = functools.lru_cache(maxsize=2)(self._sort)
        self.blocks = functools.lru_cache(maxsize=2)(self._blocks)

    def _sort(self, turn: int) -> Ints:
        samples = np.arange(self.samples)
        key = keys(Stream.ORDER, self.seed, turn, samples)
        if not self.window:
            return np.argsort(key, kind="stable")
        place = np.argsort(self.blocks(turn))  # the place of each block among the others
        return np.lexsort((key, place[samples // BLOCK] // (self.window // BLOCK)))

    def _blocks(self, turn: int) -> Ints:
        """The file's blocks in the order in which a pass through the data comes to their windows: (blocks,)."""
        return np.argsort(keys(Stream.BLOCKS, self.seed, turn, np.arange(-(-self.samples // BLOCK))), kind="stable")

    def coming(self, start: int, stop: int, at_once: bool = False) -> list[int]:
        """The blocks that are worth reading while the stream goes from `start` to `stop`: those one window ahead.

        `at_once`: those of the window that `start` lies in too.  None if there are no windows.
        """
        if not self.window:
            return []
        many, here = -(-self.samples // BLOCK), start // self.repeats
        window_start = here - here % self.samples % self.window
        places = np.array([window_start if at_once else here + self.window, stop // self.repeats + self.window])
        turns, place = np.divmod(places, self.samples)
        first, last = (turns * many + place // BLOCK).tolist()
        return [int(self.blocks(block // many)[block % many]) for block in range(first, last)]

    def permutation(self, turn: int) -> Ints:
        """The order of one pass: (samples,), each index once.  Sorting 64-bit hashes is a shuffle without state."""
        with self._lock:
            return self._sorted(turn)

    def at(self, places: Ints) -> Views:
        """What the stream holds at these places: (B,) -> 2 x (B,)."""
        turns, place = np.divmod(places, self.samples * self.repeats)
        samples = np.empty_like(places)
        for turn in np.unique(turns).tolist():
            now = turns == turn
            samples[now] = self.permutation(turn)[place[now] // self.repeats]
        return Views(turns * self.repeats + place % self.repeats, samples)
