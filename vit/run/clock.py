"""Accounts for each second of an attempt.  No torch."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vit.run.heartbeat import Heartbeat

T = TypeVar("T")


class Clock:
    """Accounts for each second of an attempt, and gives a sign of life at each turn; what is not booked is `other`."""

    def __init__(self, started: float, heart: Heartbeat | None = None) -> None:
        self.started = started  # time.time() at which the process began
        self.heart = heart
        self.seconds: dict[str, float] = {}
        self._phase, self._inner = "other", 0.0  # what goes on, and the seconds of it that are booked elsewhere

    @contextmanager
    def spend(self, on: str) -> Iterator[None]:
        """Books the time of a block, but for that of blocks inside of it."""
        start, outer, aside = time.perf_counter(), self._phase, self._inner
        self._phase, self._inner = on, 0.0
        self.sign(on)
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            self.add(on, whole - self._inner)
            self._phase, self._inner = outer, aside + whole
            self.sign(outer)

    def sign(self, phase: str) -> None:
        """Tells the process above, if one listens, what begins now."""
        if self.heart is not None:
            self.heart.sign(phase)

    def take_back(self, steps: int) -> None:
        """Tells it that so many steps are to be done again."""
        if self.heart is not None:
            self.heart.take_back(steps)

    def add(self, on: str, seconds: float) -> None:
        """Books seconds that were measured elsewhere."""
        self.seconds[on] = self.seconds.get(on, 0.0) + seconds

    def waiting(self, on: str, items: Iterable[T]) -> Iterator[T]:
        """Passes items through and books the time that each one is waited for."""
        source = iter(items)
        while True:
            with self.spend(on):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def summary(self) -> dict[str, float]:
        """Seconds for each thing, which add up to the attempt's whole time so far."""
        booked = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return booked | {"other": round(time.time() - self.started - sum(self.seconds.values()), 3)}
