"""The progress that a person sees.  No torch: `jobs` prints the same line."""

import os
import sys
import time

from vit.run.disk_errors import UNWILLING
from vit.run.jsonl import Record


def progress_line(record: Record) -> str:
    """One line for a person: where the run is, how it does and how long it still takes."""
    where = f"epoch {record['epoch']:.2f}/{record['epochs']}  step {record['step']:,}/{record['steps']:,}"
    if "val_top1" in record:
        ema = f"  EMA {record['val_top1_average']:.2%}" if "val_top1_average" in record else ""
        return f"{where}  test top-1 {record['val_top1']:.2%}  top-5 {record['val_top5']:.2%}{ema}"
    minutes, seconds = divmod(round(record["seconds_left"]), 60)
    left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    return (
        f"{where}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
        f"{record['images_per_second']:,.0f} images/s  {left} left"
    )


def show(line: str, lasting: bool = False) -> None:
    """Prints a line; on a terminal each one overwrites the one before, unless that one was to last.

    A job's output is a file in the run folder: one that a full disk does not take is lost, and the run goes on.
    """
    try:
        if not sys.stdout.isatty():
            print(line, flush=True)
        else:
            width = os.get_terminal_size().columns
            print(f"\r\x1b[K{line[: width - 1]}", end="\n" if lasting else "", flush=True)
    except OSError as error:
        if error.errno not in UNWILLING:
            raise


class Pace:
    """Images per second and the time that is left, from the steps since the last look."""

    def __init__(self, step: int, global_batch: int) -> None:
        self.global_batch = global_batch
        self._step, self._time = step, time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self._time += seconds

    def measure(self, step: int, steps: int) -> Record:
        """The pace since the last call."""
        now = time.perf_counter()
        per_step = (now - self._time) / max(1, step - self._step)
        self._step, self._time = step, now
        return {
            "images_per_second": round(self.global_batch / per_step, 1),
            "seconds_left": round((steps - step) * per_step, 1),
        }
