"""Run folders as training leaves them, without the training: random weights, saved as a checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.vit.checkpoint.test_format import save
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config, to_yaml
from vit.run.folder import RunFolder

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def saved(run: Path, state: TrainState, cfg: Config, names: list[str] | None = None) -> Path:
    """The checkpoint of a state."""
    about = {"config": to_yaml(cfg), **state.about()} | ({"classes": names} if names else {})
    return save(RunFolder(run).checkpoints, state.step, state.tensors(), about)


def finished(run: Path, cfg: Config, average: bool = True) -> TrainState:
    """A run that took 12 steps to weights that are all random, and so is their average."""
    cfg = replace(cfg, optim=replace(cfg.optim, ema_decay=0.9 if average else 0.0))
    state = TrainState.fresh(cfg, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    for model in filter(None, (state.model, state.ema)):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=random) * 0.15 + (p.mean() > 0.5))
        model.eval()
    state.step = 12
    saved(run, state, cfg, NAMES)
    return state
