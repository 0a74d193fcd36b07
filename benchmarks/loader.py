"""Random crops to 224 x 224 with flips, images/s: our loader beside those of others, from the same JPEGs, in one run.

    python benchmarks/loader.py [--quick] [--only NAME ...] [--out FILE]

The pictures are synthesized to weigh what photographs weigh: in each channel a smooth wave of its own frequency and
phase, one bright rectangle with hard edges, and Gaussian grain of 24 levels, 400 x 350 pixels, saved by Pillow at
quality 95 with its usual color subsampling: about 108 kB.  400 x 350 and 110 kB are ImageNet's means.

Each loader runs in a process of its own, with as many threads (ours, FFCV, DALI) or worker processes (torchvision,
webdataset) as said, and gives whole batches of 64 in a random order.  They take turns, a second or two each, several
times over, while the others wait, and the best turn of each counts: what else runs on the machine slows all alike.  The
time of a core that an image costs, children included, hardly depends on it at all.  The loops in C do nothing but
decode.  Start-up, from the end of `import torch` to the first batch of 256, and memory, without mapped files
and beyond what imports took, are taken in processes that do nothing else; `cold` is with none of the images in the page
cache, and for FFCV with numba's cache empty.

DALI and webdataset take part where they are installed: pip install --editable '.[bench]'.
The last line is one JSON object with all figures.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil
from contestants import CONTESTANTS, HEIGHT, WIDTH

BATCH, LARGE_BATCH = 64, 256  # images, where rates and where start-up and memory are measured
AHEAD = 6  # batches at most that a loader holds ready when its turn comes
MANY = 8  # batches of which memory is measured


def make_images(folder: Path, count: int, names: list[str]) -> None:
    """Writes `count` JPEGs in two class folders, and what of tar files and .beton files the contestants read."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j].astype(np.float32)[:, :, :, None]
    for i in range(count):
        frequency, phase = random.uniform(1, 12, (2, 3)).astype(np.float32), random.uniform(0, 6, 3).astype(np.float32)
        pixels = 128 + 70 * np.sin(frequency[0] * x + frequency[1] * y + phase)
        pixels += 24 * random.standard_normal((HEIGHT, WIDTH, 3), np.float32)
        pixels[random.integers(50, 150) : random.integers(160, 300), random.integers(50, 350) :] += 60
        path = folder / "images" / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
        if "webdataset" in names:
            with tarfile.open(folder / f"{i % 2}.tar", "a") as tar:
                tar.add(path, path.name)
                label = folder / "label"
                label.write_text(str(i % 2))
                tar.add(label, path.stem + ".cls")
    write = [sys.executable, "-m", "data_prep.write_beton", "imagefolder", str(folder / "images")]
    files = {"images.beton": "jpg", "raw.beton": "raw"}
    if not any(name.endswith("_raw") for name in names):
        del files["raw.beton"]
    started = [
        subprocess.Popen(
            [*write, "--mode", mode, "--out", str(folder / name)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for name, mode in files.items()
    ]
    for each in started:
        _, error = each.communicate()
        if each.returncode:
            sys.exit(error.decode())


@contextmanager
def process(target: Any, *arguments: Any) -> Iterator[Connection]:
    """A fresh process that runs `target(pipe, *arguments)`; the other end of the pipe."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    started = context.Process(target=target, args=(there, *arguments))
    started.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        started.join()


def leave() -> NoReturn:
    """Ends this process and its children at once: FFCV's thread would keep it for ever."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


def core_seconds() -> float:
    """What this process and its live children have used."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def serve(pipe: Connection, name: str, folder: Path, workers: int) -> NoReturn:
    """Takes turns: for each number of seconds that comes, gives (images/s, core-milliseconds of an image)."""
    import torch

    torch.set_num_threads(1)  # its idle threads spin, on cores that the workers need
    try:
        batches = CONTESTANTS[name].make(folder, workers, BATCH)
        for _ in range(AHEAD):
            next(batches)
        pipe.send(None)
        while True:
            seconds = pipe.recv()
            for _ in range(AHEAD):  # what was ready when the turn came does not count
                next(batches)
            images, used, start = 0, core_seconds(), time.perf_counter()
            while time.perf_counter() - start < seconds:
                for _ in range(workers):  # batches of two worker processes come in pairs
                    images += len(next(batches))
            rate = images / (time.perf_counter() - start)
            pipe.send((rate, 1000 * (core_seconds() - used) / images))
    except EOFError:  # no more turns
        pass
    finally:
        leave()


def memory_mb() -> float:
    """Memory of this process and its children, once where they share it: no mapped files, which are page cache."""
    kilobytes = 0
    for each in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for line in Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024 / 1e6


def alone(pipe: Connection, name: str, folder: Path, workers: int) -> NoReturn:
    """Gives (seconds from `import torch` to the first large batch, MB beyond what imports took)."""
    import torch

    torch.set_num_threads(1)
    start, before = time.perf_counter(), memory_mb()
    try:
        importlib.import_module(CONTESTANTS[name].needs)
        imported = max(before, memory_mb())
        batches = CONTESTANTS[name].make(folder, workers, LARGE_BATCH)
        next(batches)
        seconds, most = time.perf_counter() - start, 0.0
        for _ in range(MANY):
            most = max(most, memory_mb())
            next(batches)
        pipe.send((seconds, max(most, memory_mb()) - imported))
    finally:
        leave()


def forget(folder: Path) -> None:
    """Drops the images from the page cache, so that the next one to read them goes to the disk."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # only what is written out can be dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rates(names: list[str], folder: Path, workers: int, rounds: int, seconds: float) -> dict[str, tuple[float, float]]:
    """The best turn of each: images/s and core-milliseconds of an image."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(process(serve, name, folder, workers)) for name in names}
        for name, pipe in pipes.items():
            _answer(name, pipe)
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(seconds)
                turns[name].append(_answer(name, pipe))
    return {name: (max(rate for rate, _ in some), min(cost for _, cost in some)) for name, some in turns.items()}


def starts(name: str, folder: Path, workers: int, quick: bool) -> dict[str, float | None]:
    """Seconds to the first batch, cold and warm, and MB."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NUMBA_CACHE_DIR"] = cache
        seconds, memory = {}, 0.0
        for state in ("warm",) if quick else ("cold", "warm"):
            if state == "cold":
                forget(folder)
            with process(alone, name, folder, workers) as pipe:
                seconds[state], memory = _answer(name, pipe)
        del os.environ["NUMBA_CACHE_DIR"]
    return {"cold": seconds.get("cold"), "warm": seconds["warm"], "memory_mb": memory}


def _answer(name: str, pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        sys.exit(f"{name} failed; its error stands above")


def compare(names: list[str], count: int, rounds: int, seconds: float, quick: bool) -> dict[str, Any]:
    """All figures: rates for each number of workers, our ratios to the others, start-up and memory."""
    here = [name for name in names if CONTESTANTS[name].installed]
    threads = [2] if quick else [1, 2]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        folder = Path(path)
        make_images(folder, count, here)
        kilobytes = sum(file.stat().st_size for file in (folder / "images").rglob("*.jpg")) / count / 1000
        measured = {w: rates(here, folder, w, rounds, seconds) for w in threads}
        real = [name for name in here if CONTESTANTS[name].real and not name.endswith("_raw")]
        alone = {name: starts(name, folder, 2, quick) for name in real if name == "ours" or not quick}
    best = {name: rate for name, (rate, _) in measured[2].items()}

    def ratio(one: str, other: str) -> float | None:
        return round(best[one] / best[other], 3) if one in best and other in best else None

    others = ("torchvision", "torchvision_io", "stock_ffcv", "dali", "webdataset", "decode")
    return {
        **{f"vs_{other}": ratio("ours", other) for other in others},
        "vs_torchvision_raw": ratio("ours_raw", "torchvision"),
        "vs_stock_ffcv_raw": ratio("ours_raw", "stock_ffcv_raw"),
        "vs_decode_raw": ratio("ours_raw", "decode_raw"),
        "startup_s": _rounded(alone, "ours", "warm", 2),
        "memory_mb": _rounded(alone, "ours", "memory_mb", 0),
        "images_per_s": {
            n: {str(w): round(measured[w][n][0], 1) for w in threads} if n in here else None for n in names
        },
        "core_ms_per_image": {n: round(measured[2][n][1], 3) if n in here else None for n in names},
        "startup_s_cold": {name: _rounded(alone, name, "cold", 2) for name in alone},
        "startup_s_warm": {name: _rounded(alone, name, "warm", 2) for name in alone},
        "memory_mb_of": {name: _rounded(alone, name, "memory_mb", 0) for name in alone},
        "images": count,
        "kilobytes_per_image": round(kilobytes, 1),
        "machine": machine(),
    }


def _rounded(alone: dict[str, dict[str, float | None]], name: str, key: str, digits: int) -> float | None:
    value = alone.get(name, {}).get(key)
    return None if value is None else round(value, digits)


def machine() -> dict[str, Any]:
    """What it ran on, by kind, and the versions of what took part."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    packages = {each.metadata["Name"]: each.version for each in distributions()}
    took_part = ("torch", "torchvision", "pillow", "ffcv", "webdataset")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "simd": [flag for flag in ("avx2", "avx512bw") if flag in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        **{name: packages[name] for name in packages if name in took_part or name.startswith("nvidia-dali")},
    }


def table(figures: dict[str, Any]) -> str:
    """For a person: a line for each loader."""
    rates, first = figures["images_per_s"], next(each for each in figures["images_per_s"].values() if each)
    head = [*(f"{w} thread{'s' * (w != '1')}" for w in first), "core-ms", "start cold", "warm, s", "memory, MB"]
    lines = [f"{figures['kilobytes_per_image']} kB each, images/s with".ljust(50) + "".join(f"{h:>14}" for h in head)]
    for name, rate in rates.items():
        others = [figures[key].get(name) for key in ("startup_s_cold", "startup_s_warm", "memory_mb_of")]
        cells = [*(f"{r:,.0f}" for r in rate.values()), f"{figures['core_ms_per_image'][name]:.2f}"] if rate else []
        cells += ["" if other is None else f"{other:,g}" for other in others] if rate else ["not installed"]
        lines.append(CONTESTANTS[name].title.ljust(50) + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Prints a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 50 seconds: two threads, fewer loaders and turns")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--out", type=Path, metavar="FILE", help="a file for the JSON, too")
    parser.add_argument("--images", type=int, metavar="N", help="how many to synthesize (512; quick: 128)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each turn (1.5; quick: 0.5)")
    options = parser.parse_args()
    names = options.only or [name for name, each in CONTESTANTS.items() if each.quick or not options.quick]
    count, rounds, seconds = (128, 2, 0.5) if options.quick else (512, 6, 1.5)
    figures = compare(names, options.images or count, rounds, options.seconds or seconds, options.quick)
    print(table(figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
