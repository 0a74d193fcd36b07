"""Runs in which one bit of one rank's batch or gradient is flipped in a step, as defective hardware would."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tests.helpers.interrupted_runs import FaultyTrainer
from vit.config.schema import Config
from vit.data.loader import Batch
from vit.distributed.world import join_process_group
from vit.integrity.finding import WrongArithmeticError
from vit.run.clock import Clock
from vit.run.folder import NODE_VARIABLE, RunFolder
from vit.training.step import AugmentedBatch

Where = Literal["pixels", "images", "targets", "gradient", "recomputed", "recomputed once", "killed", "no memory"]
PARAMETER = "blocks.1.mlp.up.weight"  # whose gradient is changed
IMAGE = 3  # of the micro-batch


class Flip(NamedTuple):
    """One bit that is flipped."""

    where: Where
    rank: int
    step: int
    j: int = 0  # micro-batch of the rank


def flip(tensor: Tensor, place: int) -> None:
    """Flips the lowest bit of an element."""
    integers = {1: torch.uint8, 4: torch.int32}[tensor.element_size()]
    tensor.view(integers).view(-1)[place] ^= 1


class FlippingTrainer(FaultyTrainer):
    """Flips a bit of this rank's data, of its gradient, or of what it recomputes of another rank."""

    flip: Flip | None = None

    def prepare(self) -> None:
        """Installs the flip."""
        here = self.flip
        if here is None or here.rank != self.world.rank:
            return
        if here.where == "pixels":
            batches = self.train_data.batches
            self.train_data.batches = lambda *steps: self._flipped(here, batches(*steps))  # type: ignore[method-assign]
        if here.where == "gradient":
            self._flip_gradient(here)
        if here.where in ("recomputed", "recomputed once", "killed", "no memory"):
            recompute = self.recomputation.recompute

            def wrong(step: int, index: int) -> Tensor:
                sums = recompute(step, index)
                if step != here.step:
                    return sums
                if here.where == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if here.where == "no memory":
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                if here.where == "recomputed once":
                    self.recomputation.recompute = recompute
                sums[-1] += 1
                return sums

            self.recomputation.recompute = wrong

    def _flipped(self, here: Flip, batches: Iterator[Batch]) -> Iterator[Batch]:
        for step, batch in enumerate(batches):
            if step == here.step:
                m = self.schedule.config(step).micro_batch
                flip(batch.images[here.j * m + IMAGE], 100)
            yield batch

    def _flip_gradient(self, here: Flip) -> None:
        """Of one micro-batch of the step itself, not of those that are recomputed."""
        forward_backward, passes = self.runner.forward_backward, [0]

        def wrong(gradient: Tensor) -> Tensor | None:
            passes[0] += 1
            if passes[0] != here.j + 1:
                return None
            changed = gradient.clone()
            flip(changed, 7)
            return changed

        def run(step: int, batch: AugmentedBatch) -> None:
            hook = self.state.model.get_parameter(PARAMETER).register_hook(wrong) if step == here.step else None
            forward_backward(step, batch)
            if hook is not None:
                assert passes[0] == len(batch.micro_batches)
                hook.remove()

        self.runner.forward_backward = run  # type: ignore[method-assign]

    def train_step(self, step: int, batch: AugmentedBatch) -> None:
        here = self.flip
        if (
            here is not None
            and (here.rank, here.step) == (self.world.rank, step)
            and here.where in ("images", "targets")
        ):
            images, targets = batch.micro_batches[here.j]
            flip(images[IMAGE] if here.where == "images" else targets[IMAGE], 5)
        super().train_step(step, batch)


def run_flipped(cfg: Config, run: Path, flip: Flip | None, nodes: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Runs an attempt on this rank; returns the fields of the finding, None if there is none.

    `nodes` are the names of the ranks' nodes.
    """
    with join_process_group(cfg) as world:
        if nodes is not None:
            os.environ[NODE_VARIABLE] = nodes[world.rank]
        trainer = FlippingTrainer(cfg, RunFolder(run), world, Clock(time.time()), [])
        trainer.flip = flip
        trainer.prepare()
        try:
            trainer.train()
        except WrongArithmeticError as error:
            return error.finding.event()
        finally:
            trainer.saver.close()
        trainer.agreement.close()
        return None
