"""Polling of a condition, with a timeout."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Polls until the condition is true.  Raises AssertionError, which names `what`, at the timeout."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timeout after {seconds} s: {what}"
        time.sleep(0.05)
