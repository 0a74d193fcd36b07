"""The files in `configs/`: each can be trained, and states its command, its cost and its source."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.paths import CHECKOUT, CONFIGS, ROOT, RUN_CONFIGS
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.recipe import recipe_of
from vit.config.sections import AugmentConfig, ModelConfig, OptimConfig
from vit.model.vision_transformer import VisionTransformer
from vit.training.gpu_memory import step_bytes


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.name)
def test_every_config_describes_a_model_that_can_be_built(path: Path) -> None:
    """On the meta device; small models also with their optimizer, and with a forward pass."""
    cfg = load_config(path)
    with torch.device("meta"):
        model = VisionTransformer(cfg.model)
    weights = sum(p.numel() for p in model.parameters())
    assert weights > 0
    if weights < 10_000_000:
        state = TrainState.fresh(cfg, torch.device("cpu"))
        logits = state.model(torch.zeros(2, 3, cfg.model.image_size, cfg.model.image_size))
        assert logits.shape == (2, cfg.model.num_classes)


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.name)
def test_every_config_starts_with_its_command_its_cost_and_its_source(path: Path) -> None:
    """Three comment lines; the first is a command that submit.py accepts, with a valid number of ranks."""
    lines = path.read_text().splitlines()
    assert all(line.startswith("# ") for line in lines[:3])
    assert not lines[3].startswith("#")
    python, script, *options = shlex.split(lines[0].removeprefix("# "))
    assert (python, script) == ("python", "jobs/submit.py")
    assert (ROOT / options[options.index("--config") + 1]).samefile(path)
    preview = subprocess.run(
        [sys.executable, script, *options, "--cluster", "slurm", "--dry-run"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert preview.returncode == 0, preview.stderr


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.name)
def test_every_config_for_gpus_says_how_much_memory_they_need(path: Path) -> None:
    """Enough for a step, by the estimate, with the number of GPUs of its command."""
    cfg = load_config(path)
    command, cost, *_ = path.read_text().splitlines()
    found = re.search(r"(\d+) GB per GPU", cost)
    assert (found is None) == (cfg.device == "cpu")
    if found is not None:
        gpus = int(command.rpartition("--gpus ")[2])
        assert step_bytes(cfg, cfg.micro_batch, gpus) < 0.9 * int(found[1]) * 2**30


def test_no_two_configs_describe_the_same_run() -> None:
    """Otherwise one of them would be a copy with a different header."""
    recipes = {
        path.name: json.dumps(recipe_of(load_config(path)) | {"data": str(load_config(path).data.train)})
        for path in RUN_CONFIGS
    }
    assert len(set(recipes.values())) == len(recipes), recipes.keys()


def test_vit_b16_is_the_published_recipe() -> None:
    """300 epochs of ViT-B/16 at 224 pixels with 4 x 384 images per step; all other values are defaults."""
    cfg = load_config(CONFIGS / "vit_b16.yaml")
    assert cfg.model == ModelConfig(
        image_size=224, patch_size=16, width=768, depth=12, heads=12, mlp_dim=3072, num_classes=1000,
        pool="cls", positions="learned", dropout=0.0, attention_dropout=0.0, drop_path=0.0,
    )  # fmt: skip
    assert (cfg.epochs, cfg.global_batch, cfg.micro_batch, cfg.micro_batches) == (300, 4 * 384, 384, 4)
    assert cfg.optim == OptimConfig(
        lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8,
        warmup_epochs=30, final_lr=0.0, clip_norm=1.0, ema_decay=0.0,
    )  # fmt: skip
    assert cfg.augment == AugmentConfig(
        flip=0.5, randaugment_ops=2, randaugment_magnitude=9, mixup=0.2, cutmix=1.0, label_smoothing=0.1,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    assert (cfg.data.crop_scale, cfg.data.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
