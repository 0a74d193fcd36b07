"""Throughput of RandAugment with mixup or cutmix at 224 x 224 on one thread: ours, torchvision's and kornia's.

python benchmarks/augment.py [--quick]

All get the same images (smooth colors with edges and noise) and do the same: flip, two RandAugment operations at
magnitude 9, mixup or cutmix, conversion to normalized floats.  torchvision's v2 runs image by image, on Pillow images,
as its reference script does in its workers, and on tensors; ours and kornia's run on batches of 32.  They take turns.
The result is images per second of CPU time over all turns, because the cost of a turn depends on the operations drawn.
The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

sys.path[0] = str(Path(__file__).resolve().parents[1])

from vit.augment.pipeline import augment
from vit.config.sections import AugmentConfig
from vit.run.command import run_command

BATCH, SIZE, CLASSES = 32, 224, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def synthetic_images() -> Tensor:
    """Returns (B, 3, S, S) uint8."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE)[:, None]
    frequency, phase, tint = (torch.rand(BATCH, 3, 1, 1, generator=random) for _ in range(3))
    smooth = torch.sin(6.28 * (frequency * 3 * x + y + phase)) * 60 + 70 + tint * 60
    edges = 40 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1)
    noise = 4 * torch.randn(BATCH, 3, SIZE, SIZE, generator=random)
    return (smooth + edges + noise).clamp(0, 255).to(torch.uint8)


def ours(images: Tensor, labels: Tensor) -> Callable[[int], Any]:
    """Our pipeline, on batches in the layout of the loader."""
    cfg = AugmentConfig(randaugment_ops=2, mixup=0.2, cutmix=1.0)
    batch = images.permute(0, 2, 3, 1).contiguous()
    return lambda step: augment(batch, labels, cfg, CLASSES, step)


def torchvision(images: Tensor, labels: Tensor, pillow: bool) -> Callable[[int], Any]:
    """torchvision's v2 transforms on single images, then collated and mixed."""
    augmentations = [v2.RandomHorizontalFlip(), v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR)]
    conversions = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*augmentations, *([v2.PILToTensor()] if pillow else []), *conversions])
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=CLASSES), v2.CutMix(alpha=1.0, num_classes=CLASSES)])
    inputs: list[Any] = list(images)
    if pillow:
        inputs = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return lambda _: mix(torch.stack([transform(image) for image in inputs]), labels)


def kornia(images: Tensor, labels: Tensor) -> Callable[[int], Any]:
    """kornia's, on batches of floats.  It draws the operations once per batch, not per image."""
    from kornia import augmentation as K
    from kornia.augmentation.auto import RandAugment

    augmentations = K.AugmentationSequential(K.RandomHorizontalFlip(), RandAugment(n=2, m=9), data_keys=["input"])
    mixes = [
        K.RandomMixUpV2(data_keys=["input", "class"]),
        K.RandomCutMixV2(data_keys=["input", "class"], use_correct_lambda=True),
    ]
    normalize = K.Normalize(torch.tensor(MEAN), torch.tensor(STD))
    return lambda step: normalize(mixes[step % 2](augmentations(images.float() / 255), labels)[0])


def rates(makers: dict[str, Callable[[], Callable[[int], Any]]], turns: int, steps: int) -> dict[str, float | None]:
    """Images per second of CPU time; None for a library that is not installed."""
    runs: dict[str, Callable[[int], Any]] = {}
    for name, make in makers.items():
        try:
            runs[name] = make()
            runs[name](0)
        except ImportError:
            continue
    seconds = dict.fromkeys(runs, 0.0)
    for turn in range(turns):
        for name, run in runs.items():
            start = time.process_time()
            for step in range(steps):
                run(turn * steps + step)
            seconds[name] += time.process_time() - start
    return {name: BATCH * steps * turns / seconds[name] if name in runs else None for name in makers}


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds")
    turns, steps = (3, 4) if parser.parse_args().quick else (12, 12)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = synthetic_images()
    labels = torch.arange(BATCH) % CLASSES
    measured = rates(
        {
            "ours": lambda: ours(images, labels),
            "torchvision, Pillow": lambda: torchvision(images, labels, pillow=True),
            "torchvision, tensors": lambda: torchvision(images, labels, pillow=False),
            "kornia": lambda: kornia(images, labels),
        },
        turns,
        steps,
    )
    for name, rate in measured.items():
        print(f"{name:<24}" + (f"{rate:>8,.0f} images/s" if rate else "   not installed (pip install kornia)"))
    our_rate = measured["ours"] or 0.0
    ratio = {name: round(our_rate / rate, 2) if rate else None for name, rate in measured.items()}
    torchvision_ratios = [ratio[name] for name in ("torchvision, Pillow", "torchvision, tensors") if ratio[name]]
    figures = {
        "vs_torchvision": min(torchvision_ratios),  # compared with the faster one
        "vs_torchvision_pillow": ratio["torchvision, Pillow"],
        "vs_torchvision_tensors": ratio["torchvision, tensors"],
        "vs_kornia": ratio["kornia"],
        "images_per_s": {name: rate and round(rate, 1) for name, rate in measured.items()},
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
