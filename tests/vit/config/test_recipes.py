"""Each recipe in `configs/` has the published values, which are listed here with their sources."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml

from tests.helpers.paths import CHECKOUT, CONFIGS
from vit.config.parser import load_config
from vit.config.recipe import recipe_of
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.model.vision_transformer import VisionTransformer
from vit.optim.schedule import learning_rate

IMAGENET = 1_281_167  # training images

ALL = {"precision": "bf16", "compile": True}
TINY = {"model.width": 192, "model.heads": 3, "model.mlp_dim": 768}
SMALL = {"model.width": 384, "model.heads": 6, "model.mlp_dim": 1536}

# 4 GPUs with 384 images each; the first recipe that this project reproduces.
VIT_B16 = ALL | {
    "epochs": 300, "global_batch": 4 * 384, "micro_batch": 384, "optim.lr": 0.01, "optim.weight_decay": 0.1,
    "optim.warmup_epochs": 30, "optim.clip_norm": 1.0, "augment.label_smoothing": 0.1,
}  # fmt: skip
AUGMENTED = {
    "augment.randaugment_ops": 2, "augment.randaugment_magnitude": 9, "augment.mixup": 0.2, "augment.cutmix": 1.0,
}  # fmt: skip

# torchrun --nproc_per_node=8 train.py --model vit_b_16 --epochs 300 --batch-size 512 --opt adamw --lr 0.003 --wd 0.3
#   --lr-scheduler cosineannealinglr --lr-warmup-method linear --lr-warmup-epochs 30 --lr-warmup-decay 0.033 --amp
#   --label-smoothing 0.11 --mixup-alpha 0.2 --auto-augment ra --clip-grad-norm 1 --ra-sampler --cutmix-alpha 1.0
#   --model-ema;  defaults: --ra-magnitude 9 --ra-reps 3 --model-ema-decay 0.99998 --model-ema-steps 32
TORCHVISION = ALL | AUGMENTED | {
    "epochs": 300, "global_batch": 8 * 512, "micro_batch": 512, "data.repeats": 3, "augment.label_smoothing": 0.11,
    "optim.lr": 0.003, "optim.weight_decay": 0.3, "optim.decayed": "all", "optim.warmup_epochs": 30,
    "optim.warmup_lr": 0.033 * 0.003, "optim.clip_norm": 1.0, "optim.ema_warmup": "copy",
    # train.py scales the decay with the number of updates, and updates every 32 steps.
    "optim.ema_decay": (1 - (1 - 0.99998) * 8 * 512 * 32 / 300) ** (1 / 32),
}  # fmt: skip

TIMM_RANDAUGMENT = {  # rand-m9-mstd0.5-inc1, which has two operations by default
    "augment.randaugment": "timm", "augment.randaugment_ops": 2, "augment.randaugment_magnitude": 9,
    "augment.randaugment_deviation": 0.5,
}  # fmt: skip

# main.py's defaults: --lr 5e-4 (times batch / 512) --weight-decay 0.05 --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5
#   --drop-path 0.1 --aa rand-m9-mstd0.5-inc1 --smoothing 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --repeated-aug;
#   --train-interpolation bicubic;  datasets.py: Resize(interpolation=3), which is bicubic;  no clipping; --aa replaces
#   color jitter; 4 GPUs of 256 (Ti, S), 16 of 64 (B); samplers.py repeats 3 times
DEIT = ALL | TIMM_RANDAUGMENT | {
    "epochs": 300, "global_batch": 1024, "micro_batch": 256, "data.repeats": 3, "model.drop_path": 0.1,
    "data.interpolation": "bicubic", "augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.label_smoothing": 0.1,
    "augment.erasing": 0.25, "optim.lr": 5e-4 * 1024 / 512, "optim.weight_decay": 0.05,
    "optim.warmup_epochs": 5, "optim.warmup_lr": 1e-6, "optim.final_lr": 1e-5,
}  # fmt: skip

# README_revenge.md: --batch 256 (8 GPUs) --epochs 800 --weight-decay 0.05 --reprob 0.0 --smoothing 0.0
#   --warmup-epochs 5 --opt fusedlamb --warmup-lr 1e-6 --mixup .8 --cutmix 1.0 --unscale-lr --repeated-aug --bce-loss
#   --color-jitter 0.3 --ThreeAugment;  augment.py, datasets.py: bicubic;  models_v2.py: layer scale 1e-4, one drop path
#   rate;  FusedLAMB: max_grad_norm 1
DEIT3 = ALL | {
    "epochs": 800, "global_batch": 8 * 256, "micro_batch": 256, "data.repeats": 3, "model.drop_path_rule": "uniform",
    "model.layer_scale": 1e-4, "augment.three_augment": True, "augment.color_jitter": 0.3, "augment.mixup": 0.8,
    "augment.cutmix": 1.0, "optim.loss": "bce", "optim.optimizer": "lamb", "optim.weight_decay": 0.05,
    "optim.warmup_epochs": 5, "optim.warmup_lr": 1e-6, "optim.final_lr": 1e-5, "optim.clip_norm": 1.0,
    "data.interpolation": "bicubic",
}  # fmt: skip

# The second stage: --batch 64 (8 GPUs) --lr 1e-5 --epochs 20 --weight-decay 0.1 --smoothing 0.1 --opt adamw --mixup .8
#   --drop-path 0.2 --cutmix 1.0 --unscale-lr --aa rand-m9-mstd0.5-inc1 --no-repeated-aug;  --min-lr 1e-5
DEIT3_224 = ALL | TIMM_RANDAUGMENT | {
    "init_from": str(CHECKOUT / "runs" / "vit_b16_deit3_192"), "epochs": 20, "global_batch": 8 * 64,
    "micro_batch": 64, "model.drop_path": 0.2, "model.drop_path_rule": "uniform", "model.layer_scale": 1e-4,
    "data.interpolation": "bicubic", "augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.label_smoothing": 0.1,
    "optim.lr": 1e-5, "optim.weight_decay": 0.1, "optim.warmup_epochs": 5, "optim.warmup_lr": 1e-6,
    "optim.final_lr": 1e-5,
}  # fmt: skip

# config.batch_size = 1024, lr = 0.001, wd = 0.0001, warmup_steps = 10_000, grad_clip_norm = 1.0, mixup p = 0.2,
#   decode_jpeg_and_inception_crop(224) (areas from 5 %, TensorFlow's ratios), randaug(2,10) (its 10 is torchvision's
#   30), value_range(-1, 1), pool_type 'gap', posemb 'sincos2d';  optax.py decays by wd alone, where AdamW decays by lr
#   times weight_decay
S16_90_EPOCHS = ALL | SMALL | {
    "epochs": 90, "global_batch": 1024, "micro_batch": 256, "model.pool": "mean", "model.positions": "sincos2d",
    "data.crop_scale": [0.05, 1.0], "data.crop_ratio": [0.75, 1.33], "augment.randaugment_ops": 2,
    "augment.randaugment_magnitude": 30, "augment.mixup": 0.2, "augment.mean": [0.5] * 3,
    "augment.std": [0.5] * 3, "optim.lr": 1e-3, "optim.weight_decay": 1e-4 / 1e-3, "optim.warmup_epochs": 7.9926,
    "optim.clip_norm": 1.0,
}  # fmt: skip

# _ET_pp_main_deitS.py --epoch 200: --aa rand-m9-mstd0.5-inc1 (in the last stage) --drop_path 0.1 * 200 / 200
#   --use_amp true --clip_grad 5.0 --batch_size 512 or 256 (8 GPUs) --lr 4e-3 --update_freq 1 or 2;  main_buffer.py:
#   --opt adamw --weight_decay 0.05 --min_lr 1e-6 --smoothing 0.1 --train_interpolation bicubic --reprob 0.25
#   --mixup 0.8 --cutmix 1.0;  its schedule of sizes and learning rates: test_size_recipes.py.  For Ti: default_dp_dict
#   of ET_training.py, of the commit ef7d5f1, has a drop path of 0.1 for Ti as for S, and the same clipping
EFFICIENT_TRAIN = ALL | TIMM_RANDAUGMENT | {
    "epochs": 200, "epochs_count": "pixels", "global_batch": 4096, "micro_batch": 256,
    "train_sizes": [[0.2, 96, 512], [0.4, 160, 512], [0.2, 192, 256], [0.2, 224, 256]],
    "model.drop_path": 0.1, "data.interpolation": "bicubic", "data.small_images": "lanczos",
    "augment.randaugment_ramp": True, "augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.label_smoothing": 0.1,
    "augment.erasing": 0.25, "optim.lr": 4e-3, "optim.weight_decay": 0.05, "optim.warmup_epochs": 0.2 * 200,
    "optim.final_lr": 1e-6, "optim.clip_norm": 5.0,
}  # fmt: skip

# rn50_32_epochs.yaml: 160 pixels for 25 of 32 epochs, then 192, see test_size_recipes.py
S16_PILOT = S16_90_EPOCHS | {
    "epochs": 32, "train_sizes": [[25 / 32, 160], [7 / 32, 192]], "model.image_size": 192,
    "optim.warmup_epochs": 2.8418,
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A recipe according to its source."""

    values: dict[str, Any]  # all that differ from the defaults of this project
    top1: str | None  # as in the config's header; None: not published
    source: str  # as in the config's header


RECIPES = {
    "vit_b16": Published(VIT_B16 | AUGMENTED, "about 80 %", "2010.11929"),
    "vit_b16_noaug": Published(VIT_B16, "68 %", "2010.11929"),
    "vit_b16_torchvision": Published(TORCHVISION, "81.07 %", "pytorch/vision/tree/main/references/classification"),
    "vit_ti16_deit": Published(DEIT | TINY, "72.2 %", "2012.12877"),
    "vit_s16_deit": Published(DEIT | SMALL, "79.9 %", "2012.12877"),
    "vit_b16_deit": Published(DEIT | {"micro_batch": 64}, "81.8 %", "2012.12877"),
    "vit_s16_deit3_224": Published(DEIT3 | SMALL | {"optim.lr": 4e-3, "model.drop_path": 0.05}, "81.4 %", "2204.07118"),
    "vit_s16_deit3_192": Published(
        DEIT3 | SMALL | {"optim.lr": 4e-3, "model.drop_path": 0.05, "model.image_size": 192}, None, "2204.07118"
    ),
    "vit_b16_deit3_192": Published(
        DEIT3 | {"optim.lr": 3e-3, "model.drop_path": 0.2, "model.image_size": 192}, "83.8 %", "2204.07118"
    ),
    "vit_b16_deit3_224": Published(DEIT3_224, "83.8 %", "2204.07118"),
    "vit_s16_90ep": Published(S16_90_EPOCHS, "76.5 %", "2205.01580"),
    "vit_s16_efficienttrain": Published(EFFICIENT_TRAIN | SMALL, "81.0 %", "_ET_pp_main_deitS.py"),
    "vit_ti16_efficienttrain": Published(EFFICIENT_TRAIN | TINY, "73.8 %", "LeapLabTHU/EfficientTrain"),
    "vit_s16_pilot": Published(S16_PILOT, None, "libffcv/ffcv-imagenet"),
}


def test_every_recipe_is_in_the_table() -> None:
    """So that a new one has to be compared with its source."""
    others = {"demo", "demo_overfits", "demo_augmented", "finetune", "imagenet", "speeds"}  # without a published source
    others |= {"demo_sizes", "pets", "pets_finetune"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - others == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_has_the_published_values(name: str) -> None:
    """Every setting that affects the result has the value in the table, or else the default of this project."""
    found, expected = recipe_of(load_config(CONFIGS / f"{name}.yaml")), recipe_of(Config()) | RECIPES[name].values
    assert expected.keys() == found.keys(), "the table names a setting that does not exist"
    assert found == {n: pytest.approx(v, rel=1e-7) if isinstance(v, float) else v for n, v in expected.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_of_each_recipe_states_its_accuracy_source_and_cost(name: str) -> None:
    """The GPU-hours follow from the epochs over ImageNet and the throughput that is stated with them."""
    cfg = load_config(CONFIGS / f"{name}.yaml")
    _, cost, source = (CONFIGS / f"{name}.yaml").read_text().splitlines()[:3]
    top1 = RECIPES[name].top1
    assert (f"published to reach {top1} top-1" if top1 else "no published figure of its own") in cost
    assert RECIPES[name].source in source
    words = cost.split()
    hours, rate = (float(words[words.index(unit) - 1].replace(",", "")) for unit in ("GPU-hours", "images/s"))
    assert cost.startswith(f"# {cfg.epochs} epochs of ImageNet-1k: ")
    assert hours == pytest.approx(cfg.epochs * IMAGENET / rate / 3600, abs=1)


def test_the_pets_are_fine_tuned_as_other_images_are() -> None:
    """With the optimizer and the augmentation of finetune.yaml, on any number of ranks up to 8 that is a power of 2."""
    pets, own = (load_config(CONFIGS / f"{name}.yaml") for name in ("pets_finetune", "finetune"))
    assert (pets.optim, pets.augment, pets.epochs, pets.global_batch) == (
        own.optim, own.augment, own.epochs, own.global_batch
    )  # fmt: skip
    assert pets.model.drop_path == own.model.drop_path
    given = yaml.safe_load((CONFIGS / "pets_finetune.yaml").read_text())["model"]
    assert list(given) == ["drop_path"], "the sizes come from the weights, the number of classes from the data"
    for cfg in (pets, load_config(CONFIGS / "pets.yaml")):
        assert [n for n in range(1, 9) if cfg.micro_batches % n == 0] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vit_b16", "torchvision vit_b_16"),
        ("vit_b16_torchvision", "torchvision vit_b_16"),
        ("vit_ti16_deit", "timm deit_tiny_patch16_224"),
        ("vit_s16_deit", "timm deit_small_patch16_224"),
        ("vit_b16_deit", "timm deit_base_patch16_224"),
        ("vit_s16_deit3_224", "timm deit3_small_patch16_224"),
        ("vit_s16_efficienttrain", "timm deit_small_patch16_224"),
        ("vit_ti16_efficienttrain", "timm deit_tiny_patch16_224"),
    ],
)
def test_the_model_of_each_recipe_has_the_published_number_of_parameters(name: str, published: str) -> None:
    """Built on the meta device.  DeiT-III's class token has no position embedding, ours has one."""
    library, model = published.split()
    cfg = load_config(CONFIGS / f"{name}.yaml").model
    with torch.device("meta"):
        theirs = torchvision.models.get_model(model) if library == "torchvision" else timm.create_model(model)
        ours = VisionTransformer(cfg)
    extra = cfg.width if cfg.layer_scale else 0
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + extra


def test_warmup_has_the_published_length_and_learning_rates() -> None:
    """10,000 steps of warmup, though configs give epochs; DeiT starts and ends at the learning rates of its source."""
    cfg = load_config(CONFIGS / "vit_s16_90ep.yaml")
    assert cfg.steps(cfg.optim.warmup_epochs, IMAGENET) == 10_000
    cfg = load_config(CONFIGS / "vit_b16_deit.yaml")
    warmup, total = math.ceil(5 * IMAGENET / 1024), math.ceil(300 * IMAGENET / 1024)
    rates = [learning_rate(step, RunSchedule(cfg, IMAGENET)) for step in (0, warmup, total - 1)]
    assert rates == pytest.approx([1e-6 + (1e-3 - 1e-6) / warmup, 1e-3, 1e-5])
