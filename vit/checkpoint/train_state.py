"""The state of a run: weights, optimizer, EMA of the weights, step.  Everything else is a function of the step."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.checkpoint.read_weights import read_weights
from vit.config.schema import Config
from vit.model.pretrained import load_pretrained
from vit.model.vision_transformer import VisionTransformer
from vit.optim.optimizer import build_optimizer, initialize_state
from vit.random_keys import Stream, key


@dataclass
class TrainState:
    """Holds the unwrapped model, so that names in a checkpoint never start with `module.` or `_orig_mod.`."""

    model: VisionTransformer
    optimizer: torch.optim.Optimizer
    ema: VisionTransformer | None  # EMA of the weights; `average.*` in checkpoints
    scaler: torch.amp.GradScaler  # enabled for fp16 only
    step: int = 0  # steps done
    skipped: set[int] = field(default_factory=set)  # steps that are skipped because they failed, counted from 1

    def __post_init__(self) -> None:
        initialize_state(self.optimizer)

    @classmethod
    def fresh(cls, cfg: Config, device: torch.device) -> "TrainState":
        """The state at step 0: weights drawn from the seed, the same on every rank."""
        torch.manual_seed(key(Stream.INIT, cfg.seed))
        model = VisionTransformer(cfg.model).to(device)
        ema = copy.deepcopy(model).requires_grad_(False) if cfg.optim.ema_decay else None
        scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
        return cls(model, build_optimizer(model, cfg.optim), ema, scaler)

    def reset(self, cfg: Config) -> None:
        """Returns to step 0, in the same tensors."""
        fresh = TrainState.fresh(cfg, torch.device("cpu"))
        self.restore(0, fresh.tensors(), fresh.metadata())

    def load_initial_weights(self, path: Path, new_head: bool = False) -> list[str]:
        """Loads pretrained weights at step 0; returns messages that say what was loaded.  Raises UserError.

        With `new_head`, their head is left out.
        """
        weights, found = read_weights(path)
        report = found.report + load_pretrained(weights, self.model, str(path), found.heads, new_head)
        if self.ema is not None:
            self.ema.load_state_dict(self.model.state_dict())
        return report

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint: `model.*`, `average.*` (the EMA), `optimizer.*`."""
        out = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            out |= {f"average.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for state_key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"optimizer.{name}.{state_key}"] = value
        return out

    def compared_tensors(self) -> dict[str, Tensor]:
        """What must be the same on all ranks: the tensors of a checkpoint, and for fp16 the scale of gradients."""
        scale = self.scaler._get_scale_async() if self.scaler.is_enabled() else None  # None before the first step
        return self.tensors() | ({"optimizer.scaler": scale} if scale is not None else {})

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint stores of the state in addition to the tensors."""
        skipped = sorted(step for step in self.skipped if step <= self.step)
        return {"scaler": self.scaler.state_dict(), "skipped": skipped}

    def restore(self, step: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Loads the contents of a checkpoint of the same model."""
        parameters = dict(self.model.named_parameters())
        weights: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
        for full_name, tensor in tensors.items():
            prefix, name = full_name.split(".", 1)
            if prefix in weights:
                weights[prefix][name] = tensor
                continue
            name, state_key = name.rsplit(".", 1)
            state = self.optimizer.state[parameters[name]]
            if state_key in state:  # not that of another optimizer, if the run is told to change it
                state[state_key] = tensor.to(parameters[name].device, copy=True)
        self.model.load_state_dict(weights["model"])
        if self.ema is not None:
            self.ema.load_state_dict(weights["average"] or weights["model"])
        if self.scaler.is_enabled() and metadata["scaler"]:  # empty if the run started in another precision
            self.scaler.load_state_dict(metadata["scaler"])
        self.step = step
        self.skipped.update(metadata.get("skipped", ()))
