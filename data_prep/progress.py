"""How far a command is, for people: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

EVERY = 30.0  # seconds between lines in a log


@contextmanager
def progress(total: int, unit: str = "images", before: int = 0) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of images just done: a bar on a terminal, else a line every half minute.

    Those done `before` this run count for the place and not for the speed.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=before, unit=f" {unit}", smoothing=0.05) as bar:
            yield bar.update
        return
    done, start = before, time.monotonic()
    told = start

    def update(more: int) -> None:
        nonlocal done, told
        done += more
        now = time.monotonic()
        if now - told >= EVERY:
            told, rate = now, (done - before) / (now - start)
            line = f"{done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {(total - done) / rate:,.0f} s left"
            print(line, file=sys.stderr, flush=True)

    yield update
