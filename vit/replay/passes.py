"""Forward and backward of single micro-batches of a replayed step, uncompiled, for a closer look."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vit.optim.loss import training_loss
from vit.random_keys import Stream, key
from vit.replay.first_not_finite import FirstNotFinite, first_not_finite
from vit.replay.replayer import ReplayedStep, Replayer


@dataclass(frozen=True)
class Passes:
    """Forward and backward of one micro-batch, uncompiled, with the random draws of the step."""

    replayer: Replayer
    step: ReplayedStep
    index: int

    def forward(self, images: Tensor, targets: Tensor, precise: bool = False) -> tuple[Tensor, Tensor]:
        """Logits and scaled loss, as in the step; `precise`: in float32 and without a scale."""
        replayer, cfg = self.replayer, self.step.cfg
        torch.manual_seed(key(Stream.MODEL, cfg.seed, self.step.step - 1, self.index))  # dropout and drop path
        with nullcontext() if precise else replayer.runner.autocast():
            logits = replayer.state.model(images)
            loss = training_loss(logits, targets, cfg.optim.loss) / cfg.micro_batches
        return logits, loss if precise else replayer.state.scaler.scale(loss)

    def fails(self, images: Tensor, targets: Tensor, precise: bool = False) -> bool:
        """Whether logits, loss or a gradient is not finite."""
        logits, loss = self.forward(images, targets, precise)
        if not (loss.isfinite().all() and logits.isfinite().all()):
            return True
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return not all(bool(g.isfinite().all()) for g in gradients if g is not None)

    @property
    def parameters(self) -> list[Tensor]:
        """The weights that are trained."""
        return [p for p in self.replayer.state.model.parameters() if p.requires_grad]

    def first(self, images: Tensor, targets: Tensor) -> FirstNotFinite | None:
        """The first operation whose result is not finite."""
        model = self.replayer.state.model
        return first_not_finite(model, lambda: self.forward(images, targets), self.parameters, len(images))


@contextmanager
def uncompiled(replayer: Replayer) -> Iterator[None]:
    """The model without compiled graphs and without recomputed activations, in training mode."""
    model = replayer.state.model
    groups, recomputed = model.groups, model.activation_checkpointing
    model.groups, model.activation_checkpointing = tuple(model.blocks), False
    model.train()
    try:
        yield
    finally:
        model.groups, model.activation_checkpointing = groups, recomputed
