"""Nothing that a recipe may use is refused by `torch.use_deterministic_algorithms`, which `exact: bits` turns on.

torch refuses in host code, before a kernel is launched.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.null_gpu_ranks import NullGpu
from vit.augment import randaugment
from vit.augment.pipeline import augment
from vit.config.sections import AugmentConfig, ModelConfig, OptimConfig
from vit.distributed.world import enable_determinism
from vit.model.vision_transformer import VisionTransformer
from vit.optim.ema import update_ema
from vit.optim.loss import training_loss
from vit.optim.optimizer import build_optimizer

BATCH, SIZE, CLASSES = 4, 32, 10


def images() -> Tensor:
    """A batch on the GPU: (B, 3, H, W) uint8."""
    return torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8, device="cuda")


def augment_in_every_way() -> None:
    """Each operation of RandAugment and of the color jitter, then all combinations of the others."""
    enable_determinism()
    for operation in range(len(randaugment.OPERATIONS)):
        for amount in (0.5, 2.0):  # pixels are interpolated, or moved by whole numbers
            randaugment.apply(images(), np.full(BATCH, operation), np.full(BATCH, amount))
    labels = torch.zeros(BATCH, dtype=torch.int64, device="cuda")
    for mixup, cutmix, fill in product((0.0, 1.0), (0.0, 1.0), ("noise", "mean")):
        cfg = AugmentConfig(
            mixup=mixup, cutmix=cutmix, erasing=1.0, erasing_fill=fill, three_augment=True, color_jitter=0.3
        )
        for key in range(4):  # which draws different operations for the images
            augment(images().permute(0, 2, 3, 1).contiguous(), labels, cfg, CLASSES, key)


def train_in_every_way() -> None:
    """Two models with each setting between them, in each precision, with each loss and optimizer."""
    enable_determinism()
    sizes: dict[str, Any] = {"image_size": SIZE, "width": 32, "depth": 2, "heads": 2, "mlp_dim": 64}
    others = {"pool": "mean", "positions": "sincos2d", "drop_path": 0.1, "drop_path_rule": "uniform"}
    dropped = {"dropout": 0.1, "attention_dropout": 0.1, "layer_scale": 0.1}
    for settings in ({}, others | dropped):
        cfg = ModelConfig(**sizes, **settings, num_classes=CLASSES)
        model, ema = (VisionTransformer(cfg).cuda() for _ in range(2))
        optimizers = [build_optimizer(model, OptimConfig(optimizer=name)) for name in ("adamw", "lamb", "muon")]
        values = torch.zeros(BATCH, 3, SIZE, SIZE, device="cuda")
        targets = torch.zeros(BATCH, CLASSES, device="cuda")
        for dtype, loss in product((torch.float32, torch.bfloat16, torch.float16), ("cross-entropy", "bce")):
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                training_loss(model(values), targets, loss).backward()
                training_loss(model(values[:, :, :16, :16]), targets, loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        update_ema(ema, model, 0.9)


def use_another_algorithm() -> None:
    """An operation that has no deterministic form on GPUs."""
    enable_determinism()
    values = torch.zeros(1, 1, SIZE, SIZE, device="cuda", requires_grad=True)
    F.adaptive_avg_pool2d(values, 3).sum().backward()


@pytest.mark.parametrize("function", [augment_in_every_way, train_in_every_way])
def test_every_setting_has_a_deterministic_form(function: Callable[[], None], null_gpu: NullGpu) -> None:
    """Whether a recipe of this project uses it or not."""
    null_gpu.run(function)


def test_an_operation_without_a_deterministic_form_is_found(null_gpu: NullGpu) -> None:
    """Also on the null GPU, which never runs it."""
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        null_gpu.run(use_another_algorithm)
