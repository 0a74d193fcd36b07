"""Exact top-1 and top-5 accuracy: every image counts once, on any number of ranks."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from vit.augment.pipeline import normalize
from vit.config.schema import Config
from vit.data.loader import ValData
from vit.distributed.world import World
from vit.training.predictions import Predictions

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(cfg: Config, device: torch.device) -> Callable[[], torch.autocast]:
    """Returns a factory of autocast contexts in the config's precision."""
    enabled = cfg.precision != "float32"
    return functools.partial(torch.autocast, device.type, _DTYPES[cfg.precision], enabled=enabled)


@dataclass(frozen=True)
class Score:
    """Means over the whole validation set."""

    top1: float  # share of images whose label has the highest logit
    top5: float  # share of images whose label is among the five highest logits
    loss: float  # cross-entropy, without label smoothing
    images: int  # scored; without damaged ones that were skipped

    def record(self, classes: int, suffix: str) -> dict[str, float]:
        """The fields of a record of the learning curve; without top-5, which is 1, if there are so few classes."""
        out = {f"val_top1{suffix}": self.top1, f"val_top5{suffix}": self.top5, f"val_loss{suffix}": self.loss}
        return {name: value for name, value in out.items() if classes > 5 or "top5" not in name}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: ValData,
    cfg: Config,
    world: World,
    autocast: Callable[[], torch.autocast],
    stop: Callable[[], bool],
    predictions: Predictions | None = None,
) -> Score | None:
    """Evaluates a model; returns None if `stop` returned True, which it must do on all ranks in the same round.

    `predictions` records the prediction for each image.

    If the data set has only some of the model's classes, accuracy and loss are over their logits alone, as in
    ImageNet-A and -R (Hendrycks et al., https://arxiv.org/abs/1907.07174).

    Padding is not counted (the torchvision references pad the last batch with images that then count twice), and losses
    are summed batch by batch, so that no figure depends on the number of ranks.
    """
    losses = torch.zeros(data.batches_per_rank * world.size, dtype=torch.float64, device=world.device)
    counts = torch.zeros(3, dtype=torch.int64, device=world.device)  # top-1, top-5, images
    model.eval()
    for i, batch in enumerate(data.batches()):
        if stop():
            return None
        with autocast():
            logits = model(normalize(batch.images, cfg.augment))
        logits = logits.float() if data.logits is None else logits.float()[:, data.logits]  # (B, D)
        best = logits.topk(min(5, logits.shape[1])).indices  # (B, 5)
        hits = best == batch.labels[:, None]  # (B, 5); never true for padding
        counts += torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum(), (batch.labels >= 0).sum()])
        losses[i * world.size + world.rank] = F.cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum")
        if predictions is not None:
            predictions.add(batch, logits, best[:, 0])
    if predictions is not None:
        predictions.share()
    dist.all_reduce(losses)  # exact: only one rank has a nonzero value for each entry
    dist.all_reduce(counts)
    top1, top5, images = counts.tolist()
    assert images == data.samples or data.cfg.on_bad == "skip", f"{images} images evaluated of {data.samples}"
    return Score(top1 / images, top5 / images, math.fsum(losses.tolist()) / images, images)
