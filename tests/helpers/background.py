"""Work in a thread of a test, until a block ends."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs a function in a thread, which must return soon after its event is set: that is when the block ends."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def stopped_most_of_the_time(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP for four fifths of the time, as long as the process lives."""

    def stop_and_continue(over: threading.Event) -> None:
        with suppress(psutil.NoSuchProcess):
            while not over.is_set():
                process.suspend()
                time.sleep(0.4)
                process.resume()
                time.sleep(0.1)

    with in_background(stop_and_continue):
        yield
