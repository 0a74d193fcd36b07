"""Exact top-1 and top-5: every image counted once, on any number of ranks.

python -m vit.evaluate runs/vit_b16 --data data/imagenet/val.beton
"""

import argparse
import functools
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from vit.augment.pipeline import normalise
from vit.checkpoint.trained_model import Trained, load
from vit.config.schema import Config
from vit.data.decode import DamagedDataError
from vit.data.loader import ValData
from vit.distributed.world import World, join

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(cfg: Config, device: torch.device) -> Callable[[], torch.autocast]:
    """A context for forward passes in the config's precision."""
    on = cfg.precision != "float32"
    return functools.partial(torch.autocast, device.type, _DTYPES[cfg.precision], enabled=on)


@dataclass(frozen=True)
class Score:
    """Means over the whole validation set."""

    top1: float  # share of images whose label is the highest logit
    top5: float  # share of images whose label is among the five highest
    loss: float  # cross-entropy, without label smoothing


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: ValData,
    cfg: Config,
    world: World,
    autocast: Callable[[], torch.autocast],
    stop: Callable[[], bool],
) -> Score | None:
    """The score of a model, or None if `stop` said on all ranks that it should leave.

    The torchvision references pad the last batch with images that then count twice; here padding counts nothing, and
    the loss is added up batch by batch, so that no figure depends on the number of ranks.
    """
    losses = torch.zeros(data.rounds * world.size, dtype=torch.float64, device=world.device)
    counts = torch.zeros(3, dtype=torch.int64, device=world.device)  # top-1, top-5, images
    model.eval()
    for i, batch in enumerate(data.batches()):
        if stop():
            return None
        with autocast():
            logits = model(normalise(batch.images, cfg.augment))
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]  # (B, 5); padding hits nothing
        counts += torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum(), (batch.labels >= 0).sum()])
        losses[i * world.size + world.rank] = F.cross_entropy(logits, batch.labels, ignore_index=-1, reduction="sum")
    dist.all_reduce(losses)  # each entry is one rank's alone, so the sum is exact
    dist.all_reduce(counts)
    top1, top5, images = counts.tolist()
    assert images == data.samples or data.cfg.on_bad == "skip", f"{images} images evaluated of {data.samples}"
    return Score(top1 / images, top5 / images, math.fsum(losses.tolist()) / images)


def scores(run: Trained, cfg: Config) -> dict[str, Score]:
    """Of the last weights, and of their average if the run keeps one, on the data set that `cfg.data.val` names.

    Raises ValueError if it does not fit the model, or is not whole.
    """
    out = {}
    with join(cfg) as world:
        data = ValData(cfg, world)
        for name, model in (("last", run.model), ("average", run.average)):
            if model is not None:
                model.to(world.device)
                score = evaluate(model, data, cfg, world, autocast(cfg, world.device), stop=lambda: False)
                assert score is not None
                out[name] = score
    return out


def main(args: list[str] | None = None) -> int:
    """The command line; torchrun shares the set among GPUs.  Exit code 2 for what the user can mend."""
    parser = argparse.ArgumentParser("vit.evaluate", description="Exact top-1 and top-5 of what a run has learned.")
    parser.add_argument("run", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument("--data", type=Path, help=".beton with the images (default: the run's own data.val)")
    parser.add_argument("--which", default="newest", metavar="STEP", help="newest, best or a step (default: newest)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: auto)")
    options = parser.parse_args(args)
    try:
        run = load(options.run, options.which)
        data = replace(run.cfg.data, val=options.data or run.cfg.data.val)
        found = scores(run, replace(run.cfg, data=data, device=options.device))
    except (ValueError, OSError, DamagedDataError) as error:
        print(f"vit.evaluate: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") != "0":
        return 0
    if options.json:
        print(json.dumps({"step": run.step} | {name: asdict(score) for name, score in found.items()}))
        return 0
    print(f"{run.checkpoint}, {data.val}")
    print("weights      top-1      top-5     loss")
    for name, score in found.items():
        print(f"{name:8} {score.top1:9.3%} {score.top5:10.3%} {score.loss:8.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
