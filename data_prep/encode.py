"""Images to the bytes that FFCV stores, in worker processes, in order."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_prep.sources import InputError, Pixels, Source, decode


class _Worker:
    """What each worker process holds: it is forked, so nothing is copied."""

    source: ClassVar[Source]
    field: ClassVar[Any]  # ffcv's RGBImageField

    @classmethod
    def start(cls, source: Source, field: Any) -> None:
        cls.source, cls.field = source, field
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent ends us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=cls._end_with_parent, daemon=True).start()
        warnings.filterwarnings("ignore", module="PIL")  # what Pillow can mend, it tells of by warnings

    @staticmethod
    def _end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    @classmethod
    def encode(cls, indices: list[int]) -> tuple[NDArray[Any], list[bytes]]:
        """Samples as FFCV stores them: rows of its metadata (samples,), without pointers yet, and bytes."""
        rows = np.zeros(len(indices), cls.field.metadata_type)
        stored: list[Pixels] = []

        def malloc(size: int) -> tuple[int, Pixels]:
            stored.append(np.empty(size, np.uint8))
            return 0, stored[-1]

        for row, index in enumerate(indices):
            try:
                cls.field.encode(rows[row : row + 1], decode(cls.source.images[index]), malloc)
            except Exception as error:  # whatever Pillow or OpenCV raises, it is about this image
                why = " ".join(str(error).split()) or type(error).__name__
                name = cls.source.describe(index)
                raise InputError(f"{name}: cannot be used: {why}; replace or remove it, then repeat") from None
        return rows, [each.tobytes() for each in stored]


@contextmanager
def pool_of(workers: int, source: Source, field: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that encode the images of `source` by FFCV's `field`.  None outlives the block, or this process."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, _Worker.start, (source, field))
    try:
        pool.submit(int).result()  # forks them all, now that this process has no other threads
        yield pool
    except BaseException:
        # Not waited for: a worker may hang in a file system that does not answer.
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def encoded(
    pool: ProcessPoolExecutor, order: NDArray[np.int64], chunk: int, ahead: int
) -> Iterator[tuple[NDArray[Any], list[bytes]]]:
    """The samples named by `order`, in that order, `chunk` at a time: rows of FFCV's metadata without pointers, bytes.

    Up to `ahead` chunks are under way.  Raises InputError that names an image that cannot be used, and
    BrokenProcessPool if a worker was killed.
    """
    parts = (order[start : start + chunk].tolist() for start in range(0, len(order), chunk))
    waiting = deque(pool.submit(_Worker.encode, part) for part in islice(parts, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(_Worker.encode, part) for part in islice(parts, 1))
