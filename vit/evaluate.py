"""Computes the exact top-1 and top-5 accuracy of a run: every image counts once, on any number of ranks.

    python -m vit.evaluate runs/vit_b16 --data data/imagenet/val.beton
    python -m vit.evaluate runs/vit_b16 --data data/imagenet-a.beton    # 200 of the model's classes, by WordNet id
    python -m vit.evaluate runs/vit_b16 --data data/imagenet-v2.beton   # folders 0 to 999: by index

A data set may have any of the model's classes, in any order.  Accuracy and loss are then over the logits of these
classes alone, as in ImageNet-A and -R (Hendrycks et al., https://arxiv.org/abs/1907.07174).
"""

if __name__ == "__main__":
    from vit.distributed.launcher import end_with_launcher
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()
    end_with_launcher()  # before the imports below, which take seconds: torchrun may be killed meanwhile

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from vit.checkpoint.trained_model import TrainedModel, load_trained_model
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.class_names import ClassMatch, match_classes
from vit.data.dataset_manifest import read_dataset_manifest
from vit.data.decode import DamagedDataError
from vit.data.loader import ValData
from vit.distributed.launcher import read_place
from vit.distributed.world import join_process_group
from vit.run.command import run_command
from vit.training.scoring import Score, autocast, evaluate


def find_classes(run: TrainedModel, beton: Path) -> ClassMatch:
    """Which of the model's classes a data set has.  Raises UserError if it has a class that the model does not have."""
    classes, where = read_dataset_manifest(beton).classes, (str(run.checkpoint), str(beton))
    return match_classes(run.class_ids, run.cfg.model.num_classes, classes, where)


def scores(run: TrainedModel, cfg: Config, match: ClassMatch) -> dict[str, Score]:
    """Scores of the last weights, and of their EMA if the run keeps one, on the data set `cfg.data.val`.

    Raises UserError if the data set is not valid, DamagedDataError.
    """
    out = {}
    with join_process_group(cfg) as world:
        data = ValData(cfg, world, match)
        for name, model in (("last", run.model), ("ema", run.ema)):
            if model is not None:
                model.to(world.device)
                score = evaluate(model, data, cfg, world, autocast(cfg, world.device), stop=lambda: False)
                assert score is not None
                out[name] = score
    return out


def main(args: list[str] | None = None) -> int:
    """The command line; under torchrun the GPUs share the data set.  Exit code 2 for errors that the user can fix."""
    parser = argparse.ArgumentParser("vit.evaluate", description="Computes exact top-1 and top-5 accuracy of a run.")
    parser.add_argument("run", type=user_path, help="run folder, or one of its checkpoints")
    parser.add_argument(
        "--data", type=user_path, help=".beton file with any of the model's classes (default: data.val)"
    )
    parser.add_argument("--which", default="newest", metavar="STEP", help="newest, best or a step (default: newest)")
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: auto)")
    options = parser.parse_args(args)
    try:
        run = load_trained_model(options.run, options.which)
        data = replace(run.cfg.data, val=options.data or run.cfg.data.val)
        match = find_classes(run, data.val)
        found = scores(run, replace(run.cfg, data=data, device=options.device), match)
    except (UserError, OSError, DamagedDataError) as error:
        print(f"vit.evaluate: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        what = f"the memory of the GPU is not enough for the model and {run.cfg.micro_batch} images (micro_batch)"
        print(f"vit.evaluate: {what}; use another GPU, or --device cpu", file=sys.stderr)
        return 2
    if read_place().rank:
        return 0
    if options.json:
        classes = {"evaluated": len(match.logits), "model": match.model_classes, "matched": match.how}
        print(json.dumps({"step": run.step, "classes": classes} | {name: asdict(s) for name, s in found.items()}))
        return 0
    print(f"{run.checkpoint}, {data.val}")
    if described := match.describe():
        print(described)
    print("weights      top-1      top-5     loss")
    for name, score in found.items():
        print(f"{name:8} {score.top1:9.3%} {score.top5:10.3%} {score.loss:8.4f}")
    return 0


if __name__ == "__main__":
    run_command(main)
