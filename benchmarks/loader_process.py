"""The processes in which loader.py measures: throughput in turns, start-up time and memory.

The functions `serve_turns` and `measure_start` run in spawned processes and send their results through a pipe.
"""

import importlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil
from baselines import CANDIDATES

BATCH, LARGE_BATCH = 64, 256  # images: for throughput, and for start-up time and memory
PREFETCH = 6  # the largest number of batches that a loader prepares in advance
MEMORY_BATCHES = 8  # number of batches during which memory is measured


@contextmanager
def new_process(target: Any, *arguments: Any) -> Iterator[Connection]:
    """Runs `target(pipe, *arguments)` in a new process; yields the other end of the pipe."""
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=target, args=(child_end, *arguments))
    process.start()
    child_end.close()
    try:
        yield parent_end
    finally:
        parent_end.close()
        process.join()


def exit_now() -> NoReturn:
    """Ends this process and its children at once.  A normal exit would wait forever for FFCV's thread."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


def cpu_seconds() -> float:
    """CPU time of this process and its live children."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def serve_turns(pipe: Connection, name: str, folder: Path, workers: int) -> NoReturn:
    """For each number of seconds received, runs that long and sends (images/s, CPU milliseconds per image)."""
    import torch

    torch.set_num_threads(1)  # idle threads of torch would spin on cores that the workers need
    try:
        batches = CANDIDATES[name].make(folder, workers, BATCH)
        for _ in range(PREFETCH):
            next(batches)
        pipe.send(None)
        while True:
            seconds = pipe.recv()
            for _ in range(PREFETCH):  # batches prepared before the turn do not count
                next(batches)
            images, cpu_start, start = 0, cpu_seconds(), time.perf_counter()
            while time.perf_counter() - start < seconds:
                for _ in range(workers):  # two worker processes finish their batches at about the same time
                    images += len(next(batches))
            rate = images / (time.perf_counter() - start)
            pipe.send((rate, 1000 * (cpu_seconds() - cpu_start) / images))
    except EOFError:  # no more turns
        pass
    finally:
        exit_now()


def memory_mb() -> float:
    """Memory of this process and its children: shared pages count once, mapped files (page cache) do not count."""
    kilobytes = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024 / 1e6


def measure_start(pipe: Connection, name: str, folder: Path, workers: int) -> NoReturn:
    """Sends (seconds from the end of `import torch` to the first large batch, MB in addition to what imports take)."""
    import torch

    torch.set_num_threads(1)
    start, before = time.perf_counter(), memory_mb()
    try:
        importlib.import_module(CANDIDATES[name].needs)
        imported = max(before, memory_mb())
        batches = CANDIDATES[name].make(folder, workers, LARGE_BATCH)
        next(batches)
        seconds, peak = time.perf_counter() - start, 0.0
        for _ in range(MEMORY_BATCHES):
            peak = max(peak, memory_mb())
            next(batches)
        pipe.send((seconds, max(peak, memory_mb()) - imported))
    finally:
        exit_now()


def drop_page_cache(folder: Path) -> None:
    """Drops the files of a folder from the page cache, so that the next reader reads from the disk."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # only clean pages can be dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
