"""How far a command is, for people: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of images just done: a bar on a terminal, else a line every half minute."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=" images") as bar:
            yield bar.update
        return
    done, start = 0, time.monotonic()
    told = start

    def update(images: int) -> None:
        nonlocal done, told
        done += images
        now = time.monotonic()
        if now - told >= 30:
            told, rate = now, done / (now - start)
            line = f"{done:,} of {total:,} images, {rate:,.0f} images/s, {(total - done) / rate:,.0f} s left"
            print(line, file=sys.stderr, flush=True)

    yield update
