"""Loads the models of a run for inference, from one of its checkpoints."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.read_weights import read_checkpoint
from vit.checkpoint.saved_classes import numbered_classes
from vit.config.parser import config_from_text
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.class_names import ClassMatch, match_classes
from vit.data.dataset_manifest import read_dataset_manifest
from vit.model.pretrained import Tensors
from vit.model.vision_transformer import VisionTransformer
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.metrics import best_evaluation

WeightsKind = Literal["ema", "last"]


@dataclass(frozen=True)
class TrainedModel:
    """Models in evaluation mode on the CPU, with the config that they were trained with."""

    checkpoint: Path
    step: int
    cfg: Config
    classes: list[str]  # readable class names, in the order of the logits
    class_ids: list[str] | None  # class identifiers, as in the data set's manifest; None: not in the checkpoint
    model: VisionTransformer  # the weights of the last step
    ema: VisionTransformer | None  # the EMA of the weights, if the run keeps one

    def select_model(self, weights: WeightsKind | None) -> VisionTransformer:
        """The EMA or the last weights; None selects the EMA if there is one.  Raises UserError if there is no EMA."""
        if weights == "ema" and self.ema is None:
            raise UserError(f"{self.checkpoint} has no EMA of the weights (optim.ema_decay is 0); use --weights last")
        return self.model if self.ema is None or weights == "last" else self.ema

    def models(self, weights: WeightsKind | None) -> dict[WeightsKind, VisionTransformer]:
        """The model with these weights; None: with each kind that there is.  Raises UserError if there is no EMA."""
        if weights is not None:
            return {weights: self.select_model(weights)}
        found: dict[WeightsKind, VisionTransformer | None] = {"last": self.model, "ema": self.ema}
        return {name: model for name, model in found.items() if model is not None}

    def find_classes(self, beton: Path) -> ClassMatch:
        """Which of the model's classes a data set has.  Raises UserError if it has one that the model does not have."""
        classes, where = read_dataset_manifest(beton).classes, (str(self.checkpoint), str(beton))
        return match_classes(self.class_ids, self.cfg.model.num_classes, classes, where)


def add_checkpoint_options(parser: argparse.ArgumentParser, default_weights: str = "the EMA if there is one") -> None:
    """The options of all commands that use a trained model: `which` for `load_trained_model`, and `weights`."""
    parser.add_argument(
        "--which", default="newest", metavar="STEP", help="checkpoint: newest, best or a step (default: newest)"
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "last"),
        help=f"weights to use: their EMA, or those of the last step (default: {default_weights})",
    )


def choose_checkpoint(run: RunFolder, which: str) -> Path:
    """The checkpoint with the best validation score (`best`), or the one of a step.  Raises UserError."""
    available = {step_of(path): path for path in find_checkpoints(run.checkpoints)}
    evaluation = best_evaluation([r for r in read_lines(run.metrics) if r["step"] in available])
    step = evaluation["step"] if which == "best" and evaluation is not None else which
    if not str(step).isdigit() or int(step) not in available:
        steps = ", ".join(map(str, sorted(available))) or "none"
        raise UserError(f"{run.path} has no checkpoint {which!r}; available steps: {steps}")
    return available[int(step)]


def load_trained_model(path: Path, which: str = "newest") -> TrainedModel:
    """Loads the models of a run folder or of one checkpoint.  Raises UserError that names the path and the problem.

    `which` is newest (the newest intact checkpoint), best (by validation) or a step.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a run folder" + ("" if path.exists() else ": it does not exist"))
    tensors, metadata, checkpoint = read_checkpoint(
        path if which == "newest" else choose_checkpoint(RunFolder(path), which)
    )
    cfg = config_from_text(str(metadata["config"]), str(checkpoint))
    model, ema = (_build_model(cfg, tensors, prefix) for prefix in ("model.", "average."))
    assert model is not None
    class_ids = metadata.get("classes")
    if class_ids is not None and len(class_ids) != cfg.model.num_classes:
        raise UserError(
            f"{checkpoint} has the names of {len(class_ids):,} classes, but its head is for {cfg.model.num_classes:,}: "
            "it cannot be said which class is which; use another checkpoint"
        )
    return TrainedModel(
        checkpoint=checkpoint,
        step=int(metadata["step"]),
        cfg=cfg,
        classes=metadata.get("names") or _class_names(cfg, class_ids),
        class_ids=class_ids,
        model=model,
        ema=ema,
    )


def _class_names(cfg: Config, class_ids: list[str] | None) -> list[str]:
    """Readable class names for a checkpoint without them, from its data set's manifest if that still exists."""
    if class_ids is None:
        return numbered_classes(cfg.model.num_classes)
    try:
        manifest = read_dataset_manifest(cfg.data.train)
    except (UserError, OSError):
        return class_ids
    return manifest.names if manifest.names and manifest.classes == class_ids else class_ids


def _build_model(cfg: Config, tensors: Tensors, prefix: str) -> VisionTransformer | None:
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not weights:
        return None
    with torch.device("cpu"):
        model = VisionTransformer(cfg.model)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
