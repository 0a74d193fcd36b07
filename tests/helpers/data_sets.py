"""Real and synthetic images as `.beton` files, and the config of a small run on them."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST
from vit.config.schema import Config
from vit.config.sections import DataConfig, ModelConfig

TRAIN, VAL, JPEGS = 512, 100, 64  # samples; no common batch size divides VAL
CLASSES = 10
# All files are written by one other process: importing FFCV takes seconds, because it compiles.
WRITE = """
import json, sys
from data_prep.write_beton import main
sys.exit(max(main(arguments) for arguments in json.load(sys.stdin)))
"""


def small_config(data: Path) -> Config:
    """Eight micro-batches of 8 images a step, and a model with a few thousand parameters.

    `data` is a folder with train.beton and val.beton, or one file that serves as both.
    """
    train, val = (data / "train.beton", data / "val.beton") if data.is_dir() else (data, data)
    return Config(
        seed=7,
        epochs=2,
        global_batch=64,
        micro_batch=8,
        device="cpu",
        model=ModelConfig(image_size=28, patch_size=7, width=16, depth=2, heads=2, mlp_dim=32, num_classes=CLASSES),
        data=DataConfig(train=train, val=val, workers=1, crop_scale=(0.3, 1.0)),
    )


def write_data_sets(folder: Path, others: Sequence[list[str]] = ()) -> None:
    """Writes jpegs.beton and, if Fashion-MNIST is installed, train.beton and val.beton.

    `others` are the arguments of `write_beton` for more files.
    """
    write_images(folder / "images")
    jpegs = ["imagefolder", str(folder / "images"), "--out", str(folder / "jpegs.beton"), "--workers", "1"]
    commands = [jpegs, *others]
    if PACKAGED_FASHION_MNIST.is_dir():
        # The training set keeps its order, so that a test knows which image each sample must be.
        for split, options in (("train", ["--limit", str(TRAIN), "--no-shuffle"]), ("val", ["--limit", str(VAL)])):
            out = str(folder / f"{split}.beton")
            commands.append(
                ["fashion-mnist", "--split", split, *options, "--mode", "raw", "--out", out, "--workers", "1"]
            )
    done = subprocess.run(
        [sys.executable, "-c", WRITE], input=json.dumps(commands), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def write_images(folder: Path) -> None:
    """Writes synthetic images of 40 to 300 pixels a side, with gradients, edges and noise, in one folder per class."""
    random = np.random.default_rng(0)
    for i in range(JPEGS):
        h, w = random.integers(40, 301, 2)
        y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j][:, :, :, None]  # (h, w, 1)
        frequency, phase = random.uniform(0.3, 3, (2, 3)), random.uniform(0, 2 * math.pi, 3)
        colors = 128 + 90 * np.sin(2 * math.pi * (frequency[0] * x + frequency[1] * y) + phase)  # (h, w, 3)
        disc = (x - random.uniform()) ** 2 + (y - random.uniform()) ** 2 < 0.1
        pixels = np.where(disc, 255 - colors, colors) + random.normal(0, 6, (h, w, 3))
        path = folder / f"class-{i % CLASSES}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
