"""Progress of a long command: a bar on a terminal, or a line every half minute in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LOG_INTERVAL = 30.0  # seconds between lines in a log


@contextmanager
def progress(total: int, unit: str = "images", initial: int = 0) -> Iterator[Callable[[int], object]]:
    """Reports progress on stderr.  Yields a function to call with the number of items completed since its last call.

    `initial` items were completed by an earlier run: they count toward the total, but not toward the speed.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=initial, unit=f" {unit}", smoothing=0.05) as bar:
            yield bar.update
        return
    done, start = initial, time.monotonic()
    last_printed = start

    def update(count: int) -> None:
        nonlocal done, last_printed
        done += count
        now = time.monotonic()
        if now - last_printed >= LOG_INTERVAL:
            last_printed, rate = now, (done - initial) / (now - start)
            line = f"{done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {(total - done) / rate:,.0f} s left"
            print(line, file=sys.stderr, flush=True)

    yield update
