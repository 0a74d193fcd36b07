"""Which samples: a stream without end that depends on the seed alone, not on ranks, workers or where a run was stopped.

The stream is epoch 0 in a random order, then epoch 1 in another, and so on; the batch of step s is the stream from
s·B to (s+1)·B.  A batch may straddle two epochs, so no sample is ever dropped, padded or seen twice in an epoch, and
any batch of any epoch is found without walking through those before it.
"""

import functools
import threading

import numpy as np
from numpy.typing import NDArray

from vit.keys import Stream, keys


class Order:
    """The stream of a data set of `samples` images."""

    def __init__(self, seed: int, samples: int) -> None:
        self.seed = seed
        self.samples = samples
        self._lock = threading.Lock()  # threads that ask for a new epoch wait for one of them to sort it
        self._sorted = functools.lru_cache(maxsize=2)(self._sort)

    def _sort(self, epoch: int) -> NDArray[np.int64]:
        return np.argsort(keys(Stream.ORDER, self.seed, epoch, np.arange(self.samples)), kind="stable")

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The order of one epoch: (samples,), each index once.  Sorting 64-bit hashes is a shuffle without state."""
        with self._lock:
            return self._sorted(epoch)

    def slice(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch and the index of each sample of the stream from `start` to `stop`: 2 x (stop - start,)."""
        epochs = np.arange(start, stop) // self.samples
        indices = [
            self.permutation(epoch)[max(start - epoch * self.samples, 0) : stop - epoch * self.samples]
            for epoch in range(start // self.samples, -(-stop // self.samples))
        ]
        return epochs, np.concatenate(indices) if indices else np.empty(0, np.int64)
