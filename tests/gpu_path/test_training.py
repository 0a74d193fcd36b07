"""Runs with the settings of each recipe, but small models, on one and two GPUs."""

import os
import signal
import struct
from pathlib import Path

import pytest
import torch

from tests.helpers.null_gpu import TRUE_FLAGS
from tests.helpers.null_gpu_ranks import NullGpu
from tests.helpers.paths import CONFIGS
from vit import train
from vit.config.parser import load_config
from vit.model.vision_transformer import VisionTransformer
from vit.run.folder import RunFolder
from vit.training.step import AugmentedBatch
from vit.training.trainer import Trainer

IMAGES, STEPS = 64, 8  # in the data set; of a run
KILLED_STEP = 5  # after two evaluations and several checkpoints
SMALL = (
    *("--global_batch", "32", "--micro_batch", "8", "--epochs", "4", "--optim.warmup_epochs", "1"),
    *("--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--model.mlp_dim", "64"),
    *("--model.image_size", "32", "--model.num_classes", "10", "--device", "cuda", "--data.workers", "1"),
    *("--checkpoint.every_minutes", "0.0001", "--log.every_steps", "1"),
)
# What an evaluation counts: top-1 hits, top-5 hits and images, three int64.
EVALUATED = {24: struct.pack("3q", IMAGES // 4, IMAGES // 2, IMAGES)}

# Whether it is compiled, and the GPUs before and after the kill.
QUICK = [
    ("vit_b16", True, 1, 2),  # RandAugment, mixup, CutMix, clipping
    ("vit_b16_noaug", False, 2, 1),
    ("vit_b16_torchvision", False, 1, 2),  # EMA of the weights, repeated augmentation
    ("vit_b16_deit", False, 2, 1),  # timm's RandAugment, random erasing, drop path
    ("vit_b16_deit3_192", False, 1, 2),  # LAMB, binary cross-entropy, 3-Augment, LayerScale
    ("vit_b16_deit3_224", False, 2, 1),  # starts from weights of another image size
    ("vit_s16_90ep", False, 1, 2),  # mean pooling, fixed positions
    ("finetune", False, 2, 1),  # learning-rate decay by layer
]
RECIPES = sorted(path.stem for path in {*CONFIGS.glob("vit_*.yaml"), CONFIGS / "finetune.yaml"})
ALL = [(recipe, compiled, a, b) for recipe in RECIPES for compiled in (False, True) for a, b in ((1, 2), (2, 1))]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.campaign) for case in ALL if case not in QUICK)]


def train_on_gpu(arguments: list[str], killed_step: int | None) -> None:
    """Runs `vit.train` in a rank, which kills itself in that step."""
    if killed_step is not None:
        original = Trainer.train_step

        def train_step(self: Trainer, step: int, batch: AugmentedBatch) -> None:
            if step == killed_step:
                self.saver.finish()
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, step, batch)

        Trainer.train_step = train_step  # type: ignore[method-assign]
    train.main(arguments)


def initial_weights(recipe: str, folder: Path) -> list[str]:
    """The option --init_from, with weights for larger images, if the recipe has one."""
    config = load_config(CONFIGS / f"{recipe}.yaml", *SMALL, "--model.image_size", "48")
    if not config.init_from:
        return []
    torch.save(VisionTransformer(config.model).state_dict(), folder / "weights.pth")
    return ["--init_from", str(folder / "weights.pth")]


@pytest.mark.parametrize(("recipe", "compiled", "ranks_before", "ranks_after"), CASES)
def test_a_recipe_trains_is_killed_and_finishes_on_another_number_of_gpus(
    recipe: str, compiled: bool, ranks_before: int, ranks_after: int, null_gpu: NullGpu, jpegs: Path, tmp_path: Path
) -> None:
    """It steps, saves and evaluates, with deterministic algorithms as the recipes ask for; nothing raises."""
    arguments = ["--config", str(CONFIGS / f"{recipe}.yaml"), *SMALL, *initial_weights(recipe, tmp_path)]
    arguments += ["--compile", str(compiled).lower(), "--run-dir", str(tmp_path / "run")]
    arguments += ["--data.train", str(jpegs), "--data.val", str(jpegs)]
    answers = TRUE_FLAGS | EVALUATED
    killed = null_gpu.run(train_on_gpu, arguments, KILLED_STEP, ranks=ranks_before, answers=answers, timeout=200)
    assert killed == ranks_before * [-signal.SIGKILL]
    null_gpu.run(train_on_gpu, arguments, None, ranks=ranks_after, answers=answers, timeout=200)
    run = RunFolder(tmp_path / "run")
    started, finished = run.last("started"), run.finished()
    assert started is not None and finished is not None
    assert (started["device"], started["ranks"]) == ("cuda", ranks_after)
    assert KILLED_STEP - 1 <= started["step"] <= KILLED_STEP
    assert (finished["step"], finished["val_top1"], finished.get("skipped")) == (STEPS, 0.25, None)
