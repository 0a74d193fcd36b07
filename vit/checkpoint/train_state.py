"""What a run remembers: weights, optimizer, averaged weights, step.  All the rest is a function of the step."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.checkpoint.read_weights import read_weights
from vit.config.schema import Config
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_names import fit_weights
from vit.optim.optimizer import build_optimizer
from vit.random_keys import Stream, key


@dataclass
class TrainState:
    """Holds the unwrapped model, so no name in a checkpoint ever carries `module.` or `_orig_mod.`."""

    model: VisionTransformer
    optimizer: torch.optim.Optimizer
    ema: VisionTransformer | None  # of the weights; `average.*` in checkpoints
    scaler: torch.amp.GradScaler  # counts for fp16 alone
    step: int = 0  # steps done
    skipped: set[int] = field(default_factory=set)  # of all steps, from 1: those that change nothing, as they failed

    @classmethod
    def fresh(cls, cfg: Config, device: torch.device) -> "TrainState":
        """Step 0: the same weights on every rank, from the seed."""
        torch.manual_seed(key(Stream.INIT, cfg.seed))
        model = VisionTransformer(cfg.model).to(device)
        average = copy.deepcopy(model).requires_grad_(False) if cfg.optim.ema_decay else None
        scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
        return cls(model, build_optimizer(model, cfg.optim), average, scaler)

    def begin_again(self, cfg: Config) -> None:
        """Step 0, in the same tensors."""
        fresh = TrainState.fresh(cfg, torch.device("cpu"))
        self.restore(0, fresh.tensors(), fresh.about())

    def start_from(self, path: Path) -> list[str]:
        """Takes over weights from elsewhere, at step 0; what became of them, for a person.  Raises ValueError."""
        said = fit_weights(read_weights(path), self.model)
        if self.ema is not None:
            self.ema.load_state_dict(self.model.state_dict())
        return said

    def __post_init__(self) -> None:
        """Adam's moments are there from the beginning, as it would make them: a run's tensors are always the same."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                moments = {what: torch.zeros_like(parameter) for what in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] |= {"step": torch.zeros((), device=parameter.device), **moments}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is saved as bytes: `model.*`, `average.*`, `optimizer.*`."""
        out = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            out |= {f"average.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for what, value in self.optimizer.state.get(parameter, {}).items():
                out[f"optimizer.{name}.{what}"] = value
        return out

    def about(self) -> dict[str, Any]:
        """What is saved beside the tensors."""
        skipped = sorted(step for step in self.skipped if step <= self.step)
        return {"scaler": self.scaler.state_dict(), "skipped": skipped}

    def restore(self, step: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Takes over what a checkpoint of the same model holds."""
        parameters = dict(self.model.named_parameters())
        rooms: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
        for full_name, tensor in tensors.items():
            room, name = full_name.split(".", 1)
            if room in rooms:
                rooms[room][name] = tensor
                continue
            name, what = name.rsplit(".", 1)
            parameter = parameters[name]
            self.optimizer.state[parameter][what] = tensor.to(parameter.device, copy=True)
        self.model.load_state_dict(rooms["model"])
        if self.ema is not None:
            self.ema.load_state_dict(rooms["average"] or rooms["model"])
        if self.scaler.is_enabled() and about["scaler"]:  # a run may have begun in another precision
            self.scaler.load_state_dict(about["scaler"])
        self.step = step
        self.skipped.update(about.get("skipped", ()))
