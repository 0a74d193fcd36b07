"""Computes the exact top-1 and top-5 accuracy of a run: every image counts once, on any number of ranks.

    python -m vit.evaluate runs/vit_b16 --data data/imagenet/val.beton
    python -m vit.evaluate runs/vit_b16 --data data/imagenet-a.beton    # 200 of the model's classes, by WordNet id
    python -m vit.evaluate runs/vit_b16 --data data/imagenet-v2.beton   # folders 0 to 999: by index
    python -m vit.evaluate runs/vit_b16 --save                          # confusion matrix and worst mistakes, as files

A data set may have any of the model's classes, in any order.  Accuracy and loss are then over the logits of these
classes alone, as in ImageNet-A and -R (Hendrycks et al., https://arxiv.org/abs/1907.07174).
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()
    from vit.run.garbage_collection import pause_collection

    pause_collection()
    from vit.distributed.launcher import end_with_launcher

    end_with_launcher()  # before the imports below, which take seconds: torchrun may be killed meanwhile

import argparse
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vit.checkpoint.trained_model import TrainedModel, WeightsKind, add_checkpoint_options, load_trained_model
from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.class_names import ClassMatch
from vit.data.decode import DamagedDataError
from vit.data.loader import ValData
from vit.distributed.launcher import read_place
from vit.distributed.world import join_process_group
from vit.run.command import print_error, run_command
from vit.run.console import started_as
from vit.run.counts import counted
from vit.run.evaluation_file import Evaluation, write_evaluation
from vit.run.folder import RunFolder
from vit.training.predictions import Predictions
from vit.training.scoring import Score, autocast, evaluate

_MISTAKES = 24  # pictures that --save writes
_TOP5 = 5  # classes, or fewer: their top-5 accuracy is always 1, and is not shown


@dataclass(frozen=True)
class Scores:
    """The scores of each kind of weights on a data set."""

    by_weights: dict[WeightsKind, Score]
    used: int  # images of the data set that are scored unless they are damaged: the first ones
    total: int  # all its images
    saved: tuple[Evaluation, dict[str, bytes]] | None = None  # what `--save` writes, on rank 0, with its pictures

    def describe_images(self) -> str:
        """How many images count, and why others do not: 10,000 images."""
        images = next(iter(self.by_weights.values())).images
        out = counted(images, "image")
        skipped = self.used - images
        if skipped:
            out += f" (skipped: {counted(skipped, 'damaged image')})"
        if self.used < self.total:
            out += f", the first of {self.total:,} (data.limit of the run; --data FILE scores all of a file)"
        return out


def scores(run: TrainedModel, cfg: Config, match: ClassMatch, weights: WeightsKind | None, save: bool) -> Scores:
    """Scores of these weights on the data set `cfg.data.val`; None: the last, and their EMA if the run keeps one.

    Raises UserError if the data set is not valid or there is no EMA, DamagedDataError.
    """
    models = run.models(weights)
    out: dict[WeightsKind, Score] = {}
    saved = None
    with join_process_group(cfg) as world:
        data = ValData(cfg, world, match)
        for name, model in models.items():
            predictions = Predictions(data, world) if save and name == list(models)[-1] else None
            model.to(world.device)
            score = evaluate(model, data, cfg, world, autocast(cfg, world.device), lambda: False, predictions)
            assert score is not None
            out[name] = score
            if predictions is not None and world.rank == 0:
                saved = _describe(run, name, data, match, score, predictions)
    return Scores(out, data.samples, len(data.beton), saved)


def _describe(
    run: TrainedModel, weights: WeightsKind, data: ValData, match: ClassMatch, score: Score, predictions: Predictions
) -> tuple[Evaluation, dict[str, bytes]]:
    """What `--save` writes."""
    beton = data.beton
    mistakes, pictures = predictions.worst_mistakes(_MISTAKES)
    model_names = [run.classes[i] for i in match.logits] if run.class_ids is not None else beton.classes
    evaluation = Evaluation(
        step=run.step,
        weights=weights,
        data=str(beton.path),
        data_sha256=beton.sha256,
        images=score.images,
        skipped=data.samples - score.images,
        limit=data.samples if data.samples < len(beton) else None,
        top1=score.top1,
        top5=score.top5 if len(beton.classes) > _TOP5 else None,
        loss=score.loss if math.isfinite(score.loss) else None,
        classes=beton.classes,
        names=beton.names or model_names,
        confusion=predictions.confusion(),
        mistakes=mistakes,
    )
    return evaluation, pictures


def _place_to_save(checkpoint: Path, given: Path | Literal[True] | None) -> Path | None:
    """The folder in which `--save` makes one for this evaluation; for True, in the run folder.

    Raises UserError now, not after a long evaluation, if it cannot be written.
    """
    if given is None:
        return None
    advice = "name another folder to write into: --save FOLDER"
    if given is True:
        path = checkpoint if checkpoint.parent.name else checkpoint.absolute()
        if path.parent != RunFolder(path.parent.parent).checkpoints:
            raise UserError(f"{checkpoint} is not in a run folder; {advice}")
        given = RunFolder(path.parent.parent).evaluations
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{given} cannot be made: {error.strerror}; {advice}") from None
    if not os.access(given, os.W_OK | os.X_OK):
        raise UserError(f"{given} cannot be written; {advice}")
    return given


def _options(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(started_as("vit.evaluate"), description="Computes exact top-1 and top-5 accuracy of a run.")
    parser.add_argument("run", type=user_path, help="run folder, or one of its checkpoints")
    parser.add_argument(
        "--data", type=user_path, help=".beton file with any of the model's classes (default: data.val)"
    )
    add_checkpoint_options(parser, "both are scored; --save writes those of the EMA if there is one")
    parser.add_argument(
        "--save",
        type=user_path,
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="write confusion matrix and worst mistakes for reports (default: to evaluation/ in the run folder)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: auto)")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """The command line; under torchrun the GPUs share the data set.  Exit code 2 for errors that the user can fix."""
    options = _options(args)
    try:
        run = load_trained_model(options.run, options.which)
        place = _place_to_save(run.checkpoint, options.save)
        data = run.cfg.data if options.data is None else replace(run.cfg.data, val=options.data, limit=0)
        match = run.find_classes(data.val)
        cfg = replace(run.cfg, data=data, device=options.device)
        found = scores(run, cfg, match, options.weights, place is not None)
        if not read_place().rank:
            _show(run, data.val, match, found, options.json)
            if place is not None and found.saved is not None:
                written = write_evaluation(place, *found.saved)
                print(f"wrote {written}", file=sys.stderr if options.json else sys.stdout)
    except (UserError, OSError, DamagedDataError) as error:
        print_error("vit.evaluate", error)
        return 2
    except torch.OutOfMemoryError:
        what = f"the memory of the GPU is not enough for the model and {run.cfg.micro_batch} images (micro_batch)"
        print_error("vit.evaluate", f"{what}; use another GPU, or --device cpu")
        return 2
    return 0


def _show(run: TrainedModel, data: Path, match: ClassMatch, found: Scores, as_json: bool) -> None:
    """Prints the scores."""
    if as_json:
        classes = {"evaluated": len(match.logits), "model": match.model_classes, "matched": match.how}
        by_weights = {name: asdict(score) for name, score in found.by_weights.items()}
        images = {"scored": next(iter(found.by_weights.values())).images, "data_set": found.total}
        print(json.dumps({"step": run.step, "images": images, "classes": classes} | by_weights))
        return
    print(f"{run.checkpoint}, {data}: {found.describe_images()}")
    described = match.describe()
    if described:
        print(described)
    has_top5 = len(match.logits) > _TOP5
    print(f"weights      top-1{'      top-5' if has_top5 else ''}     loss")
    for name, score in found.by_weights.items():
        top5 = f" {score.top5:10.3%}" if has_top5 else ""
        print(f"{name:8} {score.top1:9.3%}{top5} {score.loss:8.4f}")


if __name__ == "__main__":
    run_command(main)
