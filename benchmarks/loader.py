"""Throughput of random 224 x 224 crops with flips from the same JPEGs: our loader compared with other loaders.

    python benchmarks/loader.py [--quick] [--only NAME ...] [--out FILE]

The images are synthetic, with the size of photographs: each channel is a smooth wave with its own frequency and phase,
plus one bright rectangle with hard edges, plus Gaussian noise with a standard deviation of 24.  They have 400 x 350
pixels, and Pillow saves them at quality 95 with its default chroma subsampling: about 108 kB.  ImageNet's means are
400 x 350 pixels and 110 kB.

Each loader runs in a process of its own with the given number of threads (ours, FFCV, DALI) or worker processes
(torchvision, webdataset), and gives full batches of 64 in random order.  They take turns of a second or two, several
times, while the others wait.  The best turn of each loader counts, because other load on the machine slows all of them
down.  CPU time per image, including child processes, hardly depends on other load.  The loops in C only decode.
Start-up time (from the end of `import torch` to the first batch of 256) and memory (in addition to what imports take,
without mapped files) are measured in separate processes.  `cold` means that no image is in the page cache and, for
FFCV, that numba's cache is empty.

DALI and webdataset are included if they are installed: pip install --editable '.[bench]'.
The last line is one JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from baselines import CANDIDATES, HEIGHT, WIDTH
from loader_process import drop_page_cache, measure_start, new_process, serve_turns


def make_images(folder: Path, count: int, names: list[str]) -> None:
    """Writes `count` JPEGs into two class folders, and the tar and .beton files that the named loaders need."""
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
    processes = [
        subprocess.Popen(
            [*write, "--mode", mode, "--out", str(folder / name)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for name, mode in files.items()
    ]
    for process in processes:
        _, error = process.communicate()
        if process.returncode:
            sys.exit(error.decode())


def rates(names: list[str], folder: Path, workers: int, rounds: int, seconds: float) -> dict[str, tuple[float, float]]:
    """The best turn of each loader: images/s and CPU milliseconds per image."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(new_process(serve_turns, name, folder, workers)) for name in names}
        for name, pipe in pipes.items():
            _receive(name, pipe)
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(seconds)
                turns[name].append(_receive(name, pipe))
    return {name: (max(rate for rate, _ in ts), min(cost for _, cost in ts)) for name, ts in turns.items()}


def start_up(name: str, folder: Path, workers: int, quick: bool) -> dict[str, float | None]:
    """Seconds to the first batch with cold and with warm caches, and memory in MB."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NUMBA_CACHE_DIR"] = cache
        seconds, memory = {}, 0.0
        for state in ("warm",) if quick else ("cold", "warm"):
            if state == "cold":
                drop_page_cache(folder)
            with new_process(measure_start, name, folder, workers) as pipe:
                seconds[state], memory = _receive(name, pipe)
        del os.environ["NUMBA_CACHE_DIR"]
    return {"cold": seconds.get("cold"), "warm": seconds["warm"], "memory_mb": memory}


def _receive(name: str, pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        sys.exit(f"{name} failed; see its error above")


def compare(names: list[str], count: int, rounds: int, seconds: float, quick: bool) -> dict[str, Any]:
    """All figures: throughput per number of workers, ratios to other loaders, start-up time and memory."""
    installed = [name for name in names if CANDIDATES[name].installed]
    threads = [2] if quick else [1, 2]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        folder = Path(path)
        make_images(folder, count, installed)
        kilobytes = sum(file.stat().st_size for file in (folder / "images").rglob("*.jpg")) / count / 1000
        measured = {w: rates(installed, folder, w, rounds, seconds) for w in threads}
        loaders = [name for name in installed if CANDIDATES[name].real and not name.endswith("_raw")]
        starts = {name: start_up(name, folder, 2, quick) for name in loaders if name == "ours" or not quick}
    best = {name: rate for name, (rate, _) in measured[2].items()}

    def ratio(one: str, other: str) -> float | None:
        return round(best[one] / best[other], 3) if one in best and other in best else None

    others = ("torchvision", "torchvision_io", "stock_ffcv", "dali", "webdataset", "decode")
    return {
        **{f"vs_{other}": ratio("ours", other) for other in others},
        "vs_torchvision_raw": ratio("ours_raw", "torchvision"),
        "vs_stock_ffcv_raw": ratio("ours_raw", "stock_ffcv_raw"),
        "vs_decode_raw": ratio("ours_raw", "decode_raw"),
        "startup_s": _rounded(starts, "ours", "warm", 2),
        "memory_mb": _rounded(starts, "ours", "memory_mb", 0),
        "images_per_s": {
            n: {str(w): round(measured[w][n][0], 1) for w in threads} if n in installed else None for n in names
        },
        "core_ms_per_image": {n: round(measured[2][n][1], 3) if n in installed else None for n in names},
        "startup_s_cold": {name: _rounded(starts, name, "cold", 2) for name in starts},
        "startup_s_warm": {name: _rounded(starts, name, "warm", 2) for name in starts},
        "memory_mb_of": {name: _rounded(starts, name, "memory_mb", 0) for name in starts},
        "images": count,
        "kilobytes_per_image": round(kilobytes, 1),
        "machine": machine(),
    }


def _rounded(starts: dict[str, dict[str, float | None]], name: str, key: str, digits: int) -> float | None:
    value = starts.get(name, {}).get(key)
    return None if value is None else round(value, digits)


def machine() -> dict[str, Any]:
    """The kind of machine, and the versions of the libraries that were compared."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    packages = {package.metadata["Name"]: package.version for package in distributions()}
    compared = ("torch", "torchvision", "pillow", "ffcv", "webdataset")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "simd": [flag for flag in ("avx2", "avx512bw") if flag in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        **{name: packages[name] for name in packages if name in compared or name.startswith("nvidia-dali")},
    }


def table(figures: dict[str, Any]) -> str:
    """A table with one line per loader."""
    rates, first = figures["images_per_s"], next(rate for rate in figures["images_per_s"].values() if rate)
    head = [*(f"{w} thread{'s' * (w != '1')}" for w in first), "CPU ms/image", "cold start, s", "warm, s", "memory, MB"]
    lines = [f"{figures['kilobytes_per_image']} kB each, images/s with".ljust(50) + "".join(f"{h:>14}" for h in head)]
    for name, rate in rates.items():
        others = [figures[key].get(name) for key in ("startup_s_cold", "startup_s_warm", "memory_mb_of")]
        cells = [*(f"{r:,.0f}" for r in rate.values()), f"{figures['core_ms_per_image'][name]:.2f}"] if rate else []
        cells += ["" if other is None else f"{other:,g}" for other in others] if rate else ["not installed"]
        lines.append(CANDIDATES[name].title.ljust(50) + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 seconds: fewer loaders and turns")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, metavar="NAME", help=", ".join(CANDIDATES))
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON to this file")
    parser.add_argument("--images", type=int, metavar="N", help="number of images (default: 512; with --quick: 128)")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a turn (default: 1.5; with --quick: 0.5)")
    options = parser.parse_args()
    names = options.only or [name for name, loader in CANDIDATES.items() if loader.quick or not options.quick]
    count, rounds, seconds = (128, 2, 0.5) if options.quick else (512, 6, 1.5)
    figures = compare(names, options.images or count, rounds, options.seconds or seconds, options.quick)
    print(table(figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
