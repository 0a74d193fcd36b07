"""Runs a step of a run again: from the nearest checkpoint before it, with the parts that the run itself is made of.

Steps are counted from 1, as in the learning curve.  V micro-batches of m images a step, C classes.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vit.augment.draws import draw
from vit.augment.mixup import Mix
from vit.checkpoint.saved_classes import DataSetClasses, check_head_classes
from vit.checkpoint.skipped_steps import NotFiniteError, recipe_checksum
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.dataset_manifest import check_data_sets
from vit.data.loader import TrainData, decoded_size
from vit.distributed.world import World
from vit.optim.schedule import learning_rate
from vit.random_keys import Stream, key
from vit.replay.checkpoint_before import load_checkpoint_before
from vit.replay.recorded import RecordedRun, differing
from vit.training.compile_cache import CompileCache
from vit.training.run_recipe import run_recipe
from vit.training.step import AugmentedBatch, StepRunner, augment_step, augmented_batches

CHECK_EVERY = 20  # steps on the way to the replayed one after which losses and gradients are checked

State = tuple[int, dict[str, Tensor], dict[str, Any]]  # step, tensors and metadata, as in a checkpoint


@dataclass(frozen=True)
class ReplayedStep:
    """What a step computed, before the update, on this rank."""

    step: int
    cfg: Config  # of this step: its image size, micro-batch and augmentation
    epoch: float
    skipped: bool  # whether the run skips it
    micro_batches: list[tuple[Tensor, Tensor]]  # V' of this rank: images (m, 3, S, S), targets (m, C)
    samples: NDArray[np.int64]  # (V', m), indices in the data set
    labels: NDArray[np.int64]  # (V', m)
    mixes: list[Mix | None]  # (V'), how each micro-batch is mixed
    logits: Tensor  # (V', m, C) float32, on the CPU
    losses: list[float]  # (V'), of the micro-batches
    sample_losses: NDArray[np.float64]  # (V', m)
    grad_norm: float
    lr: float

    @property
    def loss(self) -> float:
        """The mean loss, as in the learning curve."""
        return math.fsum(self.losses) / len(self.losses)


class Replayer:
    """Trains a run again on this rank, without writing anything; `tell` prints a line for the user."""

    def __init__(
        self, run: RecordedRun, world: World, data: Path | None, compiled: bool, tell: Callable[[str], None]
    ) -> None:
        self.run, self.world, self.data, self.compiled, self.tell = run, world, data, compiled, tell
        self._batches: Iterator[AugmentedBatch] | None = None

    def start(self, step: int, asked: int | None = None) -> Path | None:
        """Restores the newest checkpoint before a step, or the initial state; returns the checkpoint's path.

        Raises UserError if the data set or the recipe is not that of the run, or the run has no such step, or not that
        which was asked for (default: this one).
        """
        self._prepare(step)
        asked = asked or step
        if not 1 <= asked <= self.total_steps:
            raise UserError(f"{self.run.folder.path} has the steps 1 to {self.total_steps:,}, but not step {asked:,}")
        found = load_checkpoint_before(self.run.folder.checkpoints, step - 1, self.tell)
        self._prepare((found[2]["step"] if found else 0) + 1)
        self._build()
        if found is None:
            self._load_initial_weights()
        else:
            self.state.restore(found[2]["step"], found[1], found[2]["about"])
        return found[0] if found else None

    def restore(self, step: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Restores a state that `saved_state` returned, perhaps on another rank."""
        self._prepare(step + 1)
        self._build()
        self.state.restore(step, tensors, metadata)

    def saved_state(self) -> State:
        """The state as a checkpoint would store it; the tensors are not copied."""
        return self.state.step, self.state.tensors(), self.state.metadata()

    @property
    def total_steps(self) -> int:
        """The steps of the whole run."""
        return self.schedule.total_steps

    def _prepare(self, step: int) -> None:
        """Finds settings, data and schedule as they are in the run at a step."""
        cfg = self.recorded_cfg = self.run.config(step, self.data)
        # Nothing else than speed depends on these.
        data = replace(cfg.data, cache="os", verify="never", stage="", prefetch=1)
        checks = replace(cfg.checks, recompute_every_steps=0)
        cfg = replace(cfg, data=data, checks=checks, cuda_graphs=False)
        cfg = cfg if self.compiled else replace(cfg, compile=False)
        cfg.check_ranks(self.world.size)
        check_data_sets(cfg.model.num_classes, cfg.data.train)
        self.cfg, self.train_data = cfg, TrainData(cfg, self.world)
        self.schedule = self.train_data.schedule
        self._check_recipe(step)

    def _build(self) -> None:
        """Puts together the state of step 0, and what computes a step."""
        cfg = self.cfg
        self.state = TrainState.fresh(cfg, self.world.device)
        self.state.skipped |= self.run.skipped(recipe_checksum(self.recipe))
        if cfg.compile:
            CompileCache(self.run.folder, self.world, read_only=True)
        self.runner = StepRunner(self.schedule, self.world, self.state)
        self._batches = None

    def _check_recipe(self, step: int) -> None:
        recorded = self.run.recipe(step)
        self.recipe = run_recipe(self.recorded_cfg, self.train_data)
        differences = differing(recorded, self.recipe) if recorded is not None else []
        if differences:
            advice = "give the data set of the run: --data.train PATH"
            raise UserError(f"{self.run.folder.path} cannot be replayed: {'; '.join(differences)}; {advice}")

    def _load_initial_weights(self) -> None:
        if self.cfg.init_from:
            beton = self.train_data.beton
            if self.cfg.init_head == "keep":
                classes = DataSetClasses(beton.path, beton.classes, beton.names)
                check_head_classes(Path(self.cfg.init_from), classes)
            self.state.load_initial_weights(Path(self.cfg.init_from), self.cfg.init_head == "new")

    def advance(self, step: int, progress: Callable[[int, float], None] = lambda *_: None) -> float:
        """Trains up to the state before a step, as the run did; returns the seconds that it took.

        `progress` is called after each step with its number and the seconds so far.  Raises UserError if a step on the
        way is not finite here, although the run did not skip it.
        """
        started = time.monotonic()
        while self.state.step < step - 1:
            self._change_settings()
            self.train_step()
            if self.state.step % CHECK_EVERY == 0 or self.state.step == step - 1:
                self._check_finite()
            progress(self.state.step, time.monotonic() - started)
        self._change_settings()
        return time.monotonic() - started

    def _change_settings(self) -> None:
        """Goes on under other settings, if the run was resumed at this step with them."""
        if self._batches is not None and self.run.change_after(self.state.step) == self.state.step:
            step, tensors, metadata = self.saved_state()
            self.restore(step, {name: tensor.clone() for name, tensor in tensors.items()}, metadata)

    def train_step(self) -> None:
        """Runs the next step as the run did: skips it if the run does."""
        step, batch = self.state.step, self._next_batch()
        if step + 1 in self.state.skipped:
            self.runner.skip(step)
            return
        self.runner.forward_backward(step, batch)
        self.runner.update(step)

    def _check_finite(self) -> None:
        try:
            self.runner.check_finite()
        except NotFiniteError as error:
            raise UserError(
                f"{error} here, although the run did not skip it; replay that step: --step {error.step}"
            ) from None

    def _next_batch(self) -> AugmentedBatch:
        if self._batches is None:
            start, stop = self.state.step, self.total_steps
            batches = self.train_data.batches(start, stop)
            self._batches = augmented_batches(self.schedule, self.world, batches, start)
        return next(self._batches)

    def forward_backward(self) -> ReplayedStep:
        """Computes the next step's losses and gradients, also if the run skips it.  Nothing is updated yet."""
        step, batch = self.state.step, self._next_batch()
        cfg = self.schedule.config(step)
        logits: list[Tensor] = []
        handle = self.state.model.register_forward_hook(lambda *args: logits.append(args[2].detach()))
        try:
            self.runner.forward_backward(step, batch)
        finally:
            handle.remove()
        shape = len(batch.micro_batches), cfg.micro_batch
        samples = batch.samples.reshape(shape)
        losses = [self._losses(each, targets) for each, (_, targets) in zip(logits, batch.micro_batches, strict=True)]
        return ReplayedStep(
            step=step + 1,
            cfg=cfg,
            epoch=self.schedule.epoch(step + 1),
            skipped=step + 1 in self.state.skipped,
            micro_batches=batch.micro_batches,
            samples=samples,
            labels=self.train_data.beton.labels[samples],
            mixes=[self._mix(cfg, step, index) for index in self.world.my_micro_batches(cfg.micro_batches)],
            logits=torch.stack(logits).float().cpu(),
            losses=self.runner.losses.tolist(),
            sample_losses=torch.stack(losses).double().cpu().numpy(),
            grad_norm=self.grad_norm(),
            lr=self.state.optimizer.param_groups[0]["lr_scale"] * learning_rate(step, self.schedule),
        )

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image: (m, C), (m, C) -> (m,)."""
        with self.runner.autocast():
            if self.cfg.optim.loss == "bce":
                present = (targets > 0).float()
                return F.binary_cross_entropy_with_logits(logits.float(), present, reduction="none").mean(dim=1)
            return F.cross_entropy(logits, targets, reduction="none").float()

    def _mix(self, cfg: Config, step: int, index: int) -> Mix | None:
        """How a micro-batch is mixed: drawn again, as by `augment`."""
        decoded, S = decoded_size(self.cfg, cfg), cfg.model.image_size
        draw_key = key(Stream.AUGMENT, cfg.seed, step, index)
        return draw(cfg.augment, cfg.micro_batch, decoded, decoded, (S, S), draw_key, cfg.mix_distance)[1]

    def unmixed(self, step: ReplayedStep, j: int) -> tuple[Tensor, Tensor]:
        """Images and targets of the step's j-th micro-batch, augmented as in the step, but not mixed."""
        batch = next(self.train_data.batches(step.step - 1, step.step))
        index = self.world.my_micro_batches(step.cfg.micro_batches)[j]
        mine = slice(j * step.cfg.micro_batch, (j + 1) * step.cfg.micro_batch)
        # Mixing is drawn last, so the other draws stay the same.
        plain = replace(step.cfg, augment=replace(step.cfg.augment, mixup=0.0, cutmix=0.0))
        return augment_step(plain, step.step - 1, [index], batch.images[mine], batch.labels[mine])

    def grad_norm(self) -> float:
        """The norm of the gradients in `.grad`, as the optimizer's step computes it."""
        gradients = [p.grad for p in self.state.model.parameters() if p.grad is not None]
        if self.state.scaler.is_enabled():
            scale = self.state.scaler.get_scale()
            gradients = [gradient * (1.0 / scale) for gradient in gradients]
        return float(nn.utils.get_total_norm(gradients))

    def update(self) -> None:
        """Completes the step that `forward_backward` has computed: clips, and updates the weights."""
        self.runner.update(self.state.step)
        self.runner.discard_unchecked()

    def skip(self) -> None:
        """Completes it without an update, as the run did."""
        self.runner.skip(self.state.step)
