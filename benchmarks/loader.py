"""Random crops to 224 x 224, images/s: our loader beside those of others, from the same JPEG bytes, in one run.

python benchmarks/loader.py [--quick]

The pictures are synthesised: smooth colours, edges and grain, 400 x 350 pixels, about 110 kB at quality 95, which are
ImageNet's mean size and weight.  Each loader runs in a process of its own, in turns, and gives whole batches of 64 in a
random order.  The best of its turns counts.  The last line is one JSON object with all figures.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, SIZE = 64, 224
LOADERS = {
    "ours": "ours, the crop decoded in C++, Pillow's pixels",
    "ours_ffcv": "ours, with FFCV's decoder",
    "ffcv": "FFCV's Loader",
    "torchvision": "torchvision ImageFolder and DataLoader, Pillow",
    "torchvision_io": "the same with torchvision.io and transforms.v2",
    "decode": "FFCV's decoder alone, whole images (no crop)",
}


def make_images(folder: Path, count: int) -> None:
    """Writes `count` JPEGs in two class folders, and a .beton with the same bytes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    y, x = np.mgrid[0:1:350j, 0:1:400j][:, :, :, None]
    for i in range(count):
        frequency, phase = random.uniform(1, 12, (2, 3)), random.uniform(0, 6, 3)
        pixels = 128 + 70 * np.sin(frequency[0] * x + frequency[1] * y + phase) + random.normal(0, 24, (350, 400, 3))
        pixels[random.integers(50, 150) : random.integers(160, 300), random.integers(50, 350) :] += 60
        path = folder / "images" / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    write = [sys.executable, "-m", "data_prep.write_beton", "imagefolder", str(folder / "images")]
    subprocess.run([*write, "--out", str(folder / "images.beton")], check=True, capture_output=True)


def ours(folder: Path, workers: int, kind: str) -> Iterator[Any]:
    """Epochs of our loader, with the flip that training does on the device."""
    import numpy as np
    import torch

    from vit.data.beton import open_beton
    from vit.data.decode import Decoder, RandomCrop
    from vit.data.loader import Plan, Reader
    from vit.data.order import Order

    beton = open_beton(folder / "images.beton")
    decoder = Decoder(beton, RandomCrop(0, (0.08, 1.0), (0.75, 4 / 3)), SIZE, kind)
    reader, order = Reader(decoder, BATCH, workers, 3, torch.device("cpu")), Order(0, len(beton))
    places = np.arange(BATCH)
    plans = (Plan(functools.partial(order.at, step * BATCH + places)) for step in range(10**9))
    for batch in reader.read(plans):
        batch.images[::2] = batch.images[::2].flip(2)
        yield batch.images


def ffcv(folder: Path, workers: int) -> Iterator[Any]:
    """Epochs of FFCV's own loader."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    image = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip(), ToTensor()]
    pipelines = {"image": image, "label": [IntDecoder(), ToTensor()]}
    options = {"batch_size": BATCH, "num_workers": workers, "order": OrderOption.RANDOM, "drop_last": True}
    loader = Loader(str(folder / "images.beton"), pipelines=pipelines, os_cache=True, **options)
    while True:
        for images, _ in loader:
            yield images


def torchvision(folder: Path, workers: int, io: bool) -> Iterator[Any]:
    """Epochs of torchvision's ImageFolder in worker processes."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    crop, flip = v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()
    load = {"loader": lambda path: decode_image(path, ImageReadMode.RGB)} if io else {}
    steps = [crop, flip] if io else [crop, flip, v2.PILToTensor()]
    data = ImageFolder(folder / "images", transform=v2.Compose(steps), **load)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    while True:
        for images, _ in loader:
            yield images


def decode(folder: Path, workers: int) -> Iterator[Any]:
    """FFCV's C decoder on whole images, in a loop on `workers` threads: what no loader that uses it can pass."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from vit.data.beton import open_beton
    from vit.data.decode import _ffcv_library

    beton, library = open_beton(folder / "images.beton"), _ffcv_library()
    base, records = beton.memory.ctypes.data, list(zip(beton.offset.tolist(), beton.size.tolist(), strict=True))

    def some(share: int) -> None:
        out = np.empty(3 * 350 * 400, np.uint8)
        for i in range(share):
            offset, size = records[i % len(records)]
            library.imdecode(base + offset, size, 350, 400, out.ctypes.data, 350, 400, 0, 0, 1, 1, False, False)

    with ThreadPoolExecutor(workers) as pool:
        while True:
            list(pool.map(some, [BATCH // workers] * workers))
            yield np.empty((BATCH // workers * workers, 1))


def measure(name: str, folder: Path, workers: int, seconds: float) -> float:
    """Images/s after the first batches."""
    import torch

    makers: dict[str, Callable[[], Iterator[Any]]] = {
        "ours": lambda: ours(folder, workers, "native"),
        "ours_ffcv": lambda: ours(folder, workers, "ffcv"),
        "ffcv": lambda: ffcv(folder, workers),
        "torchvision": lambda: torchvision(folder, workers, io=False),
        "torchvision_io": lambda: torchvision(folder, workers, io=True),
        "decode": lambda: decode(folder, workers),
    }
    torch.set_num_threads(1)  # its idle threads spin, on cores that the workers need
    batches = makers[name]()
    for _ in range(8):
        next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += len(next(batches))
    return images / (time.perf_counter() - start)


def compare(count: int, rounds: int, seconds: float, workers: list[int]) -> dict[str, Any]:
    """The best rate of each loader for each number of workers, and our ratios to the others."""
    best: dict[str, dict[int, float]] = {name: {} for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), count)
        kilobytes = sum(path.stat().st_size for path in Path(folder, "images").rglob("*.jpg")) / count / 1000
        for _ in range(rounds):
            for w in workers:
                for name in LOADERS:
                    command = [sys.executable, __file__, "--measure", name, folder, str(w), str(seconds)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    best[name][w] = max(best[name].get(w, 0.0), float(done.stdout.split()[-1]))
    most = max(workers)
    return {
        "images": count,
        "kilobytes_per_image": round(kilobytes, 1),
        "images_per_s": {name: {str(w): round(rate, 1) for w, rate in rates.items()} for name, rates in best.items()},
        **{
            f"vs_{short}": round(best["ours"][most] / best[name][most], 3)
            for short, name in (
                ("torchvision", "torchvision"),
                ("torchvision_io", "torchvision_io"),
                ("stock_ffcv", "ffcv"),
                ("decode", "decode"),
            )
        },
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Prints a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 50 seconds, two threads only")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, folder, workers, seconds = options.measure
        print(measure(name, Path(folder), int(workers), float(seconds)))
        sys.stdout.flush()
        os._exit(0)  # FFCV's thread would keep the process
    figures = compare(128, 1, 1.5, [2]) if options.quick else compare(512, 2, 4.0, [1, 2])
    columns = list(figures["images_per_s"]["ours"])
    print(f"images/s, {figures['kilobytes_per_image']} kB each" + "".join(f"{c + ' threads':>12}" for c in columns))
    for name, rates in figures["images_per_s"].items():
        print(f"{LOADERS[name]:<50}" + "".join(f"{rates[c]:>12,.0f}" for c in columns))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
