"""Runs with the settings of a recipe, but a small model, on ranks with null GPUs."""

import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import torch

from tests.helpers import null_gpu_counts
from tests.helpers.null_gpu import TRUE_FLAGS
from tests.helpers.null_gpu_counts import Counts
from tests.helpers.paths import CONFIGS
from vit import train
from vit.config.parser import load_config
from vit.model.vision_transformer import VisionTransformer
from vit.training.step import AugmentedBatch
from vit.training.trainer import Trainer

RECIPES = sorted(path.stem for path in {*CONFIGS.glob("vit_*.yaml"), CONFIGS / "finetune.yaml"})
# Recipes of which no two differ only in numbers.
DISTINCT_RECIPES = (
    "vit_b16",  # RandAugment, mixup, CutMix, clipping
    "vit_b16_noaug",
    "vit_b16_torchvision",  # EMA of the weights, repeated augmentation
    "vit_b16_deit",  # timm's RandAugment, random erasing, drop path
    "vit_b16_deit3_192",  # LAMB, binary cross-entropy, 3-Augment, LayerScale
    "vit_b16_deit3_224",  # starts from weights of another image size
    "vit_s16_90ep",  # mean pooling, fixed positions
    "finetune",  # learning-rate decay by layer
)

IMAGES = 64  # in the data set
STEPS_PER_EPOCH = 2
SMALL = (
    *("--global_batch", "32", "--micro_batch", "8", "--optim.warmup_epochs", "1"),
    *("--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--model.mlp_dim", "64"),
    *("--model.image_size", "32", "--model.num_classes", "10", "--device", "cuda", "--data.workers", "1"),
)
TOP1 = 0.25
# No kernel runs: these are the top-1 hits, top-5 hits and images that an evaluation reads from the GPU, as three int64.
ANSWERS = TRUE_FLAGS | {24: struct.pack("3q", int(TOP1 * IMAGES), IMAGES // 2, IMAGES)}


def run_options(recipe: str, compiled: bool, images: Path, folder: Path, *more: str) -> list[str]:
    """The options of `vit.train` for a small run in `folder`, on a .beton file with IMAGES images."""
    file, small = CONFIGS / f"{recipe}.yaml", list(SMALL)
    if "train_sizes:" in file.read_text():
        small += ["--train_sizes", "[[0.5, 16, 16], [0.5, 32]]", "--epochs_count", "images"]
    options = ["--config", str(file), *small, "--compile", str(compiled).lower()]
    options += ["--data.train", str(images), "--data.val", str(images), "--run-dir", str(folder / "run"), *more]
    larger = load_config(file, *small, "--model.image_size", "48")
    if larger.init_from:
        torch.save(VisionTransformer(larger.model).state_dict(), folder / "weights.pth")
        options += ["--init_from", str(folder / "weights.pth")]
    return options


def train_until_killed(options: list[str], killed_step: int) -> None:
    """Runs `vit.train` in a rank, which kills itself in that step."""

    def before_step(trainer: Trainer, step: int) -> None:
        if step == killed_step:
            trainer.saver.finish()
            os.kill(os.getpid(), signal.SIGKILL)

    _train(options, before_step)


def train_and_count(options: list[str], first: int, last: int) -> Counts:
    """Runs `vit.train` in a rank; returns what its GPU did from the start of step `first` to that of step `last`."""
    counts = []

    def before_step(_: Trainer, step: int) -> None:
        if step == first:
            null_gpu_counts.watch()
            null_gpu_counts.reset()
        if step == last:
            counts.append(null_gpu_counts.read())

    _train(options, before_step)
    return counts[0]


def _train(options: list[str], before_step: Callable[[Trainer, int], None]) -> None:
    original = Trainer.train_step

    def train_step(self: Trainer, step: int, batch: AugmentedBatch) -> None:
        before_step(self, step)
        original(self, step, batch)

    Trainer.train_step = train_step  # type: ignore[method-assign]  # only in this rank
    train.main(options)
