"""What a run has learned, ready to be used: its newest whole checkpoint, as models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.read_weights import read_checkpoint
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_names import Tensors
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.metrics import best

Which = Literal["ema", "last"]


@dataclass(frozen=True)
class TrainedModel:
    """Models in evaluation mode on the CPU, and what they were trained for."""

    checkpoint: Path
    step: int
    cfg: Config
    classes: list[str]  # their names, in the order of the logits
    model: VisionTransformer  # the weights of the last step
    ema: VisionTransformer | None  # the EMA of the weights, if the run keeps one

    def pick(self, which: Which | None) -> VisionTransformer:
        """The average or the last weights; None: the average if there is one.  Raises ValueError if there is none."""
        if which == "ema" and self.ema is None:
            raise ValueError(f"{self.checkpoint} keeps no EMA of the weights (optim.ema_decay 0); use --weights last")
        return self.model if self.ema is None or which == "last" else self.ema


def choose(run: RunFolder, which: str) -> Path:
    """The checkpoint that `which` means: best (by validation) or a step.  Raises ValueError."""
    there = {step_of(path): path for path in find_checkpoints(run.checkpoints)}
    evaluation = best([r for r in read_lines(run.metrics) if r["step"] in there])
    step = evaluation["step"] if which == "best" and evaluation is not None else which
    if not str(step).isdigit() or int(step) not in there:
        steps = ", ".join(map(str, sorted(there))) or "none"
        raise ValueError(f"{run.path} has no checkpoint {which!r}; there are steps {steps}")
    return there[int(step)]


def load_trained_model(path: Path, which: str = "newest") -> TrainedModel:
    """Reads a run folder, or one of its checkpoints.  Raises ValueError that names it and what is wrong with it.

    `which` is newest (the newest whole one), best (by validation) or a step.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no run folder" + ("" if path.exists() else ": it does not exist"))
    tensors, about, found = read_checkpoint(path if which == "newest" else choose(RunFolder(path), which))
    cfg = parse_config(config_parser(str(found)), ["--config", str(about["config"])])[0]
    models = [_model(cfg, tensors, f"{room}.") for room in ("model", "average")]
    assert models[0] is not None
    numbers = [f"class {i}" for i in range(cfg.model.num_classes)]
    return TrainedModel(
        checkpoint=found,
        step=int(about["step"]),
        cfg=cfg,
        classes=list(about.get("classes", numbers)),
        model=models[0],
        ema=models[1],
    )


def _model(cfg: Config, tensors: Tensors, room: str) -> VisionTransformer | None:
    weights = {name.removeprefix(room): tensor for name, tensor in tensors.items() if name.startswith(room)}
    if not weights:
        return None
    with torch.device("cpu"):
        model = VisionTransformer(cfg.model)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
