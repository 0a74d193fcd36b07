"""Makes two small .beton files of synthetic JPEGs, whose ten classes can be told apart.

python -m benchmarks.on_gpu.images FOLDER
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.on_gpu.checks import ROOT

CLASSES, SIDE = 10, 256
COUNTS = {"train": 1600, "val": 320}
SETTINGS = ["--model.num_classes", str(CLASSES)]


def make_image(folder: Path, split: str, number: int) -> None:
    """Writes one image: smooth noise under waves whose direction and length are those of its class."""
    random, label = np.random.default_rng((list(COUNTS).index(split), number)), number % CLASSES
    noise = Image.fromarray(random.integers(0, 255, (12, 14, 3), dtype=np.uint8))
    pixels = np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float32)
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = 60 * np.sin((y * np.cos(label) + x * np.sin(label)) / (4 + label))
    pixels = pixels / 2 + waves[..., None] + random.normal(60, 4, pixels.shape)
    path = folder / split / f"class-{label}" / f"{number:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def make_data(folder: Path, counts: Mapping[str, int] = COUNTS) -> None:
    """Writes `train.beton` and `val.beton`, unless they are there."""
    if (folder / "val.beton").exists():
        return
    jobs = [(folder, split, number) for split, count in counts.items() for number in range(count)]
    with get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.starmap(make_image, jobs, chunksize=40)
    for split in counts:
        out = ["--out", str(folder / f"{split}.beton")]
        command = [sys.executable, "-m", "data_prep.write_beton", "imagefolder", str(folder / split), *out]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def data_settings(folder: Path) -> list[str]:
    """The options of a command that trains on these files."""
    return [*SETTINGS, "--data.train", str(folder / "train.beton"), "--data.val", str(folder / "val.beton")]


if __name__ == "__main__":
    make_data(Path(sys.argv[1]))
