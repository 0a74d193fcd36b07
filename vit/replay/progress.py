"""Says how long the way to a step is, and how far it is done."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from vit.checkpoint.format import step_of
from vit.replay.recorded import RecordedRun
from vit.run.counts import counted
from vit.run.progress import clear_line, format_duration, show

LONG_SECONDS = 60.0  # a way that takes longer is announced
MEASURED_STEPS = 3  # before it can be said how long the way is; the first step may compile
INTERVAL = 0.5  # seconds between updates on a terminal
INTERVAL_OF_FILES = 60.0  # elsewhere


def teller(quiet: bool) -> Callable[[str], None]:
    """Prints a line for the user; nothing if `quiet`, because the output is JSON."""
    return (lambda _: None) if quiet else (lambda line: show(line, lasting=True))


class WayProgress:
    """The progress line of the steps from a checkpoint to the state before a step."""

    def __init__(self, start: int, step: int, quiet: bool) -> None:
        self.start, self.last, self.quiet = start, step - 1, quiet  # the state before the step is that of `last`
        self._terminal = sys.stdout.isatty()
        self._first: tuple[int, float] | None = None  # the step and the time from which the speed is measured
        self._announced = False
        self._shown = time.monotonic()

    def show(self, step: int, seconds: float) -> None:
        """Shows that this step is done, after so many seconds."""
        if self.quiet:
            return
        if self._first is None:
            self._first = step, seconds
            return
        measured = step - self._first[0]
        left = (self.last - step) * (seconds - self._first[1]) / measured
        if measured == MEASURED_STEPS and left > LONG_SECONDS and not self._announced:
            self._announced = True
            steps = counted(self.last - step, "step")
            show(f"the way takes about {format_duration(left)}: {steps} are trained first", lasting=True)
        if time.monotonic() - self._shown > (INTERVAL if self._terminal else INTERVAL_OF_FILES):
            self._shown = time.monotonic()
            show(f"on the way: step {step:,} of {self.last:,}, {format_duration(left)} left")

    def __enter__(self) -> "WayProgress":
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the line."""
        if not self.quiet:
            clear_line()


def describe_start(run: RecordedRun, checkpoint: Path | None, step: int) -> str:
    """From where a step is replayed, and how long the run itself took for the steps up to it."""
    start = step_of(checkpoint) if checkpoint else 0
    origin = f"the checkpoint of step {start:,}" if checkpoint else "the initial weights"
    steps = step - 1 - start
    if not steps:
        return f"from {origin}"
    seconds = _seconds_in_run(run, step)
    took = f", which took the run about {format_duration(steps * seconds)}" if seconds is not None else ""
    return f"from {origin}: {counted(steps, 'step')} before step {step:,} are trained again{took}"


def _seconds_in_run(run: RecordedRun, step: int) -> float | None:
    """Seconds of one step, by the run's own record of the nearest step."""
    nearest = min(run.curve, key=lambda each: abs(each - step), default=None)
    if nearest is None or not (rate := run.curve[nearest].get("images_per_second")):
        return None
    return run.config(step).global_batch / float(rate)
