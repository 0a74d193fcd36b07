"""Measures how an attempt spends its time, phase by phase.  Imports no torch."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from vit.run.heartbeat import Heartbeat

T = TypeVar("T")


def process_start() -> float:
    """time.time() at which this process began.

    psutil knows it only to a second on Linux: it adds the time since the system's start to that start, which Linux
    gives in whole seconds.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the name before may contain spaces
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, AttributeError):  # not Linux
        return psutil.Process().create_time()


class Clock:
    """Adds up the seconds of each phase of an attempt and writes a heartbeat whenever the phase changes.

    Time that belongs to no phase is `other`.
    """

    def __init__(self, started: float, heartbeat: Heartbeat | None = None) -> None:
        self.started = started  # time.time() at which the process began
        self.heartbeat = heartbeat
        self.seconds: dict[str, float] = {}
        self._phase, self._nested = "other", 0.0  # the current phase, and seconds of it that nested phases took

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the duration of a block to a phase, without that of the phases nested in it."""
        start, outer, outer_nested = time.perf_counter(), self._phase, self._nested
        self._phase, self._nested = name, 0.0
        self.beat(name)
        try:
            yield
        finally:
            duration = time.perf_counter() - start
            self.add(name, duration - self._nested)
            self._phase, self._nested = outer, outer_nested + duration
            self.beat(outer)

    def beat(self, phase: str) -> None:
        """Reports the phase that begins now to the supervisor, if there is one."""
        if self.heartbeat is not None:
            self.heartbeat.beat(phase)

    def rewind(self, steps: int) -> None:
        """Reports that this many steps will be repeated."""
        if self.heartbeat is not None:
            self.heartbeat.rewind(steps)

    def add(self, phase: str, seconds: float) -> None:
        """Adds seconds that were measured elsewhere to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def timed_iterator(self, phase: str, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and adds the time spent waiting for each of them to a phase."""
        source = iter(items)
        while True:
            with self.phase(phase):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def summary(self) -> dict[str, float]:
        """Seconds of each phase, including `other`; they add up to the duration of the attempt so far."""
        phases = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return phases | {"other": round(time.time() - self.started - sum(self.seconds.values()), 3)}

    def record(self) -> dict[str, object]:
        """The fields of a record of the learning curve that tell when it was written, and the time spent until then."""
        return {"time": round(time.time(), 3), "seconds": self.summary()}
