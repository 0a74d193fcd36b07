"""Finished run folders without training: random weights, saved as a checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.helpers.checkpoints import save_checkpoint
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config, to_yaml
from vit.run.folder import RunFolder

# The classes of Fashion-MNIST.
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def save_state(run: Path, state: TrainState, cfg: Config, names: list[str] | None = None) -> Path:
    """Saves a state as a checkpoint of the run; returns the checkpoint."""
    about = {"config": to_yaml(cfg), **state.metadata()} | ({"classes": names} if names else {})
    return save_checkpoint(RunFolder(run).checkpoints, state.step, state.tensors(), about)


def make_finished_run(run: Path, cfg: Config, with_ema: bool = True) -> TrainState:
    """Writes a finished run of 12 steps with random weights and, unless turned off, a random EMA; returns its state."""
    cfg = replace(cfg, optim=replace(cfg.optim, ema_decay=0.9 if with_ema else 0.0))
    state = TrainState.fresh(cfg, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    for model in filter(None, (state.model, state.ema)):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=random) * 0.15 + (p.mean() > 0.5))
        model.eval()
    state.step = 12
    save_state(run, state, cfg, NAMES)
    return state
