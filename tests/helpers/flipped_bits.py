"""Runs in which one bit of one rank's state is flipped, as defective hardware would."""

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.helpers.interrupted_runs import FaultyTrainer
from vit.config.schema import Config
from vit.distributed.world import join_process_group
from vit.integrity.finding import WrongArithmeticError
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.training.step import AugmentedBatch


class Flip(NamedTuple):
    """A bit of one rank that is flipped after a step."""

    step: int  # steps done
    rank: int
    tensor: str  # its name in a checkpoint
    bit: int = 12  # of its first element: one of a float32 that survives rounding, and leaves it finite


def flip_bit(tensor: Tensor, bit: int) -> None:
    """Flips one bit of a tensor's first element in place."""
    with torch.no_grad():
        tensor.detach().reshape(-1)[:1].view(torch.int32).bitwise_xor_(1 << bit)


class FlippingTrainer(FaultyTrainer):
    """Flips bits after its steps."""

    flips: tuple[Flip, ...] = ()

    def train_step(self, step: int, batch: AugmentedBatch) -> None:
        super().train_step(step, batch)
        for flip in self.flips:
            if (flip.step, flip.rank) == (self.state.step, self.world.rank):
                flip_bit(self.state.compared_tensors()[flip.tensor], flip.bit)


def run_flipped(cfg: Config, run: Path, *flips: Flip) -> tuple[str, str]:
    """Runs one attempt on this rank; returns its outcome, or the message of WrongArithmeticError, and the step."""
    with join_process_group(cfg) as world:
        trainer = FlippingTrainer(cfg, RunFolder(run), world, Clock(time.time()), [])
        trainer.flips = flips
        try:
            outcome = trainer.train().value
        except WrongArithmeticError as error:
            outcome = str(error)
            trainer.saver.finish()
        trainer.agreement.close()
        trainer.saver.close()
        return outcome, f"step {trainer.state.step}"


def compare_every(cfg: Config, steps: int, log_every_steps: int = 1) -> Config:
    """Compares the ranks each n-th step, and looks at what was compared at each log step."""
    checks = replace(cfg.checks, checksum_every_steps=steps)
    return replace(cfg, checks=checks, log=replace(cfg.log, every_steps=log_every_steps))
