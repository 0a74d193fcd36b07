"""The progress line of a run.  Imports no torch: `jobs` prints the same line."""

import os
import sys
from contextlib import suppress

from vit.run.jsonl import Record


def progress_line(record: Record) -> str:
    """Formats a record of the learning curve: progress, loss or accuracy, throughput, MFU and time left."""
    position = f"epoch {record['epoch']:.2f}/{record['epochs']}  step {record['step']:,}/{record['steps']:,}"
    if "val_top1" in record:
        ema = f"  EMA {record['val_top1_average']:.2%}" if "val_top1_average" in record else ""
        top5 = f"  top-5 {record['val_top5']:.2%}" if "val_top5" in record else ""  # not for five classes or fewer
        return f"{position}  test top-1 {record['val_top1']:.2%}{top5}{ema}"
    rate = record["images_per_second"]
    minutes, seconds = divmod(round(record["seconds_left"]), 60)
    left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    mfu = f"  MFU {record['mfu']:.0%}" if "mfu" in record else ""
    return (
        f"{position}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
        f"{rate:,.{0 if rate >= 10 else 1}f} images/s{mfu}  {left} left"
    )


def format_duration(seconds: float) -> str:
    """`42 s`, `3:05`, `2:10:00` or `3 d 4 h`."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d}"
    if seconds < 2 * 86400:
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def show(line: str, lasting: bool = False) -> None:
    """Prints a line.  On a terminal it overwrites the previous one, unless that one was `lasting`.

    A line that cannot be written is lost, and the run continues: the disk of a job's output may be full, the reader of
    a pipe or the terminal may be gone.
    """
    with suppress(OSError):
        if not (sys.stdout and sys.stdout.isatty()):
            print(line, flush=True)
        elif lasting:
            print(f"\r\x1b[K{line}", flush=True)
        else:
            width = os.get_terminal_size(sys.stdout.fileno()).columns  # 0: unknown, e.g. on a serial console
            print(f"\r\x1b[K{line[: width - 1] if width else line}", end="", flush=True)


def clear_line() -> None:
    """Removes a line from the terminal that is not lasting."""
    with suppress(OSError):
        if sys.stdout and sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)
