"""Decoding and augmentation of small images on one thread: decoded at their size, or cropped at 224 and resized.

python benchmarks/image_sizes.py [--quick]

The two ways of `data.small_images`, and EfficientTrain++'s own with Pillow, torchvision and timm, if that is installed.
All read the same JPEGs, which are those of loader.py (synthesized, 400 x 350 pixels, 108 kB), and do the same: random
crop (bicubic), flip, two of timm's RandAugment operations at magnitude 9, normalization, random erasing, mixup or
CutMix, in batches of 32.  They take turns.  The result is images per second of CPU time; of several turns with the same
random draws the fastest counts, because other load on the machine slows all of them down.  The last line is one JSON
object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import make_images

sys.path[0] = str(Path(__file__).resolve().parents[1])

from vit.augment.pipeline import augment
from vit.config.sections import AugmentConfig
from vit.data.beton import open_beton
from vit.data.decode import Decoder, RandomCrop, resolve_decoder
from vit.run.command import run_command

BATCH, SIZE, CLASSES = 32, 224, 1000
SIDES = (96, 160, 192, 224)
STAGES = (96, 96, 160, 160, 160, 160, 192, 192, 224, 224)  # of EfficientTrain++, each with the same number of pixels
IMAGENET, EPOCHS = 1_281_167, 100
RECIPE = AugmentConfig(
    **{"randaugment": "timm", "randaugment_ops": 2, "randaugment_magnitude": 9, "randaugment_deviation": 0.5},
    **{"erasing": 0.25, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
)
Parts = dict[str, float]  # CPU seconds of each part of a batch


def ours(folder: Path, decoded: bool, side: int) -> Callable[[int], Parts]:
    """Our decoder and augmentation, as training runs them."""
    beton = open_beton(folder / "images.beton")
    decoder = Decoder(beton, RandomCrop(0, (0.08, 1.0), (3 / 4, 4 / 3)), resolve_decoder("auto"), None, "bicubic")
    size = side if decoded else SIZE
    pixels = np.empty((BATCH, size, size, 3), np.uint8)

    def batch(step: int) -> Parts:
        views, samples = np.full(BATCH, step), (BATCH * step + np.arange(BATCH)) % len(beton)
        start = time.process_time()
        decoder.decode(views, samples, pixels)
        middle = time.process_time()
        augment(torch.from_numpy(pixels), torch.from_numpy(samples % CLASSES), RECIPE, CLASSES, step, side=side)
        return {"decoding": middle - start, "augmentation": time.process_time() - middle}

    return batch


def efficient_train(folder: Path, side: int) -> Callable[[int], Parts]:
    """EfficientTrain++'s transforms, as in its datasets_buffer.py, image by image, then collated and mixed."""
    from PIL import Image
    from timm.data import Mixup, create_transform
    from torchvision import transforms

    transform = create_transform(
        input_size=SIZE,
        is_training=True,
        auto_augment="rand-m9-inc1",  # without mstd0.5: at magnitude 10, its posterize fails with Pillow 13
        interpolation="bicubic",
        color_jitter=None,
        re_prob=RECIPE.erasing,
        re_mode="pixel",
    )
    if side < SIZE:
        resize = transforms.Resize(side, interpolation=transforms.InterpolationMode.LANCZOS)
        transform.transforms.insert(3, resize)
    mix = Mixup(RECIPE.mixup, RECIPE.cutmix, label_smoothing=RECIPE.label_smoothing, num_classes=CLASSES)
    files = sorted((folder / "images").rglob("*.jpg"))

    def batch(step: int) -> Parts:
        start = time.process_time()
        images = []
        for i in range(BATCH):
            with Image.open(files[(BATCH * step + i) % len(files)]) as image:
                images.append(transform(image.convert("RGB")))
        mix(torch.stack(images), torch.arange(BATCH))
        return {"all": time.process_time() - start}

    return batch


def milliseconds(runs: dict[str, Callable[[int], Parts]], turns: int, batches: int) -> dict[str, Parts]:
    """CPU milliseconds per image of each part: the fastest of `turns` turns of each batch."""
    fastest: dict[tuple[str, int], Parts] = {}
    for run in runs.values():
        run(0)  # loads libraries
    for _ in range(turns):
        for step in range(batches):
            for name, run in runs.items():
                parts = run(step)
                before = fastest.get((name, step), parts)
                fastest[name, step] = min(before, parts, key=lambda each: sum(each.values()))
    images = BATCH * batches
    return {
        name: {part: 1000 * sum(fastest[name, step][part] for step in range(batches)) / images for part in first}
        for name, first in ((name, fastest[name, 0]) for name in runs)
    }


def measure(folder: Path, turns: int, batches: int) -> dict[str, dict[int, Parts | None]]:
    """CPU milliseconds per image of each way at each side; None without timm."""
    ways: dict[str, dict[int, Parts | None]] = {"decoded": {}, "lanczos": {}, "efficient_train": {}}
    for side in SIDES:
        runs = {"decoded": ours(folder, True, side), "lanczos": ours(folder, False, side)}
        if side == SIZE:  # both do the same
            del runs["lanczos"]
        try:
            runs["efficient_train"] = efficient_train(folder, side)
        except ImportError:
            ways["efficient_train"][side] = None
        for name, parts in milliseconds(runs, turns, batches).items():
            ways[name][side] = parts
    ways["lanczos"][SIZE] = ways["decoded"][SIZE]
    return ways


def figures_of(ways: dict[str, dict[int, Parts | None]]) -> dict[str, Any]:
    """All figures: images/s, ratios, parts, and the core-hours of a run of EfficientTrain++ on ImageNet."""

    def total(way: str, side: int) -> float | None:
        parts = ways[way][side]
        return None if parts is None else sum(parts.values())

    def ratio(one: str, other: str) -> dict[int, float | None]:
        pairs = {side: (total(one, side), total(other, side)) for side in SIDES}
        return {side: round(b / a, 2) if a and b else None for side, (a, b) in pairs.items()}

    def core_hours(way: str) -> float | None:
        totals = [total(way, side) for side in STAGES]
        images = [IMAGENET * EPOCHS / len(STAGES) * (SIZE / side) ** 2 for side in STAGES]
        hours = [ms * count / 3.6e6 for ms, count in zip(totals, images, strict=True) if ms is not None]
        return round(sum(hours), 1) if len(hours) == len(STAGES) else None

    def per_second(ms: float | None) -> float | None:
        return round(1000 / ms, 1) if ms else None

    return {
        "decoded_vs_lanczos": ratio("decoded", "lanczos"),
        "lanczos_vs_efficient_train": ratio("lanczos", "efficient_train"),
        "images_per_s": {way: {side: per_second(total(way, side)) for side in SIDES} for way in ways},
        "ms_per_image": {
            way: {
                side: {part: round(ms, 3) for part, ms in parts.items()} if parts else None
                for side, parts in sides.items()
            }
            for way, sides in ways.items()
        },
        "core_hours_100_epochs": {way: core_hours(way) for way in ways},
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    turns, batches = (2, 2) if options.quick else (10, 12)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        make_images(Path(folder), BATCH * (2 if options.quick else 4), ["ours"])
        figures = figures_of(measure(Path(folder), turns, batches))
    print(f"{'images/s':<18}" + "".join(f"{side:>8}" for side in SIDES) + "    core-hours of 100 epochs")
    for way, rates in figures["images_per_s"].items():
        cells = "".join(f"{rate:>8,.0f}" if rate else f"{'–':>8}" for rate in rates.values())
        print(f"{way:<18}{cells}{figures['core_hours_100_epochs'][way] or '–':>12}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=4) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
