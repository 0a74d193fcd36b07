"""Data sets of the same small JPEGs under different class names, and models that tell the classes apart."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import save_state
from tests.helpers.image_files import save_image, smooth
from vit.augment.pipeline import normalize
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.data.image_input import load_image

ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx"]
IMAGES = 3  # of each class
WNIDS = [f"n{10_000_000 + 7 * i}" for i in range(1000)]  # as many as ImageNet has
IMAGENET = {0: "ant", 2: "bee", 10: "cat", 999: "dog"}  # their indices as text are not in this order

# For each data set, the name of the folder of each animal.
FOLDERS = {
    "named": {name: name for name in ANIMALS},
    "capital": {name: "Cat" if name == "cat" else name for name in ANIMALS},  # "Cat" comes before "ant"
    "numbers": {name: str(i) for i, name in enumerate(ANIMALS)},  # 0, 1, 10, 11, 2, …
    "some": {name: name for name in ("bee", "gnu", "hen", "koi", "lynx", "dog")},
    "unknown": {"ant": "ant", "bee": "yak", "cat": "zebra"},
    "wnids": {name: WNIDS[i] for i, name in IMAGENET.items()},
    "imagenet-v2": {name: str(i) for i, name in IMAGENET.items()},
}


def write_class_images(folder: Path) -> list[list[str]]:
    """Writes the folders; returns the arguments of `write_beton` that make NAME.beton from each.

    Also of subset-0.beton and subset-1.beton, with six of the animals that the seeds 0 and 1 draw.
    """
    for number, name in enumerate(ANIMALS):
        for i in range(IMAGES):
            save_image(folder / "animals" / name / f"{i}.jpg", smooth(40, 36, IMAGES * number + i), quality=92)
    commands = []
    for data_set, names in FOLDERS.items():
        for name, called in names.items():
            shutil.copytree(folder / "animals" / name, folder / data_set / called)
        out = str(folder / f"{data_set}.beton")
        commands.append(["imagefolder", str(folder / data_set), "--out", out, "--workers", "1"])
    for seed in ("0", "1"):
        subset = ["--subset", "6", "--seed", seed, "--out", str(folder / f"subset-{seed}.beton"), "--workers", "1"]
        commands.append(["imagefolder", str(folder / "animals"), *subset])
    return commands


def class_config(train: Path, val: Path | None = None, num_classes: int = len(ANIMALS)) -> Config:
    """A run of six steps."""
    cfg = small_config(train)
    return replace(
        cfg,
        global_batch=12,
        micro_batch=6,
        model=replace(cfg.model, num_classes=num_classes),
        data=replace(cfg.data, val=val or train),
    )


def logits_by_hand(state: TrainState, cfg: Config, folder: Path, names: Sequence[str]) -> Tensor:
    """The logits of all images in the folders of these classes, in order, read one by one: (images, C)."""
    pixels = [load_image(path, cfg) for name in names for path in sorted((folder / name).iterdir())]
    with torch.inference_mode():
        return state.model.eval()(normalize(torch.from_numpy(np.stack(pixels)), cfg.augment))


def make_classifier(
    run: Path, cfg: Config, animals: Path, logits: Sequence[int], names: list[str] | None
) -> TrainState:
    """Writes a run whose model has learned the first image of each animal by heart; `logits` are the animals' logits.

    `names` are the names of all classes in the checkpoint, None for a checkpoint without names.
    """
    torch.manual_seed(0)
    state = TrainState.fresh(cfg, torch.device("cpu"))
    model = state.model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    head, model.head = model.head, torch.nn.Identity()  # type: ignore[assignment]
    features = logits_by_hand(state, cfg, animals, ANIMALS)[::IMAGES]  # (animals, D)
    model.head = head
    targets = torch.full((len(ANIMALS), cfg.model.num_classes), -1.0)
    targets[torch.arange(len(logits)), list(logits)] = 1.0
    solution = torch.linalg.lstsq(torch.cat([features, torch.ones(len(ANIMALS), 1)], dim=1), targets).solution
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])
    state.step = 6
    save_state(run, state, cfg, names)
    return state
