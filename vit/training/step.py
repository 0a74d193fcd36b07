"""One optimizer step of a rank: augmentation, forward and backward of its micro-batches, the sum over ranks, update."""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vit.augment.pipeline import augment
from vit.checkpoint.skipped_steps import NotFiniteError
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.data.loader import Batch, Ints
from vit.distributed.gradients import MicroBatchGradients
from vit.distributed.world import World
from vit.optim.ema import ema_decay, update_ema
from vit.optim.loss import training_loss
from vit.optim.schedule import learning_rate
from vit.random_keys import Stream, key
from vit.training.scoring import autocast


@dataclass(frozen=True)
class Augmented:
    """What a rank runs in one step."""

    micro_batches: list[tuple[Tensor, Tensor]]  # (m, 3, S, S) float32 and (m, C) float32 of each
    samples: Ints  # (B,), each sample's index in the file
    ready: torch.cuda.Event | None  # on a GPU: when all of it is there


def augmented(cfg: Config, world: World, batches: Iterator[Batch], start: int) -> Iterator[Augmented]:
    """The batches from step `start` on; on a GPU made a step ahead, on a stream of their own."""
    stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
    ahead: deque[Augmented] = deque()
    for step in itertools.count(start):
        with torch.cuda.stream(stream):  # the loader copies to the GPU on it too
            batch = next(batches, None)
            if batch is not None:
                ahead.append(_augmented(cfg, world, step, batch, stream))
        if batch is None and not ahead:
            return
        if batch is None or stream is None or len(ahead) > 1:
            yield ahead.popleft()


def _augmented(cfg: Config, world: World, step: int, batch: Batch, stream: torch.cuda.Stream | None) -> Augmented:
    m = cfg.micro_batch
    micro_batches = [
        augment(
            batch.images[j * m : (j + 1) * m],
            batch.labels[j * m : (j + 1) * m],
            cfg.augment,
            cfg.model.num_classes,
            key(Stream.AUGMENT, cfg.seed, step, index),
        )
        for j, index in enumerate(world.my_micro_batches(cfg.micro_batches))
    ]
    return Augmented(micro_batches, batch.samples, stream.record_event() if stream else None)


class Step:
    """Runs steps of one state.  `gradient` and then `update`, or `skip`; `check` before the result is trusted."""

    def __init__(self, cfg: Config, world: World, state: TrainState, samples: int) -> None:
        self.cfg, self.world, self.state, self.samples = cfg, world, state, samples
        if cfg.compile:
            # Block by block: one graph serves them all, and their gradients still leave while backward goes on.
            for model in filter(None, (state.model, state.ema)):
                for block in model.blocks:
                    block.compile()
        self.gradients = MicroBatchGradients(state.model, world, cfg.exact)
        self.autocast = autocast(cfg, world.device)
        self._losses = torch.zeros(())  # of this rank's micro-batches in the last step, on the device: (micro-batches,)
        self._unchecked: list[
            tuple[int, Tensor]
        ] = []  # steps, and the losses and the gradient's norm: (micro-batches + 1,)
        self._updated: int | None = None  # the step of the last update, if its weights were not looked at

    def gradient(self, step: int, batch: Augmented) -> None:
        """Leaves the gradient of the mean loss over all micro-batches of all ranks in the parameters."""
        cfg, state, micro_batches = self.cfg, self.state, self.world.my_micro_batches(self.cfg.micro_batches)
        losses = []
        state.model.train()
        if batch.ready is not None:
            torch.cuda.current_stream().wait_event(batch.ready)
        for j, (index, (images, targets)) in enumerate(zip(micro_batches, batch.micro_batches, strict=True)):
            if batch.ready is not None:  # made on another stream: their memory is not to be used again too soon
                images.record_stream(torch.cuda.current_stream())
                targets.record_stream(torch.cuda.current_stream())
            torch.manual_seed(key(Stream.MODEL, cfg.seed, step, index))  # dropout and drop path
            with self.gradients.micro_batch(j, len(micro_batches)):
                with self.autocast():
                    loss = training_loss(self.gradients.model(images), targets, cfg.optim.loss)
                state.scaler.scale(loss / cfg.micro_batches).backward()
            losses.append(loss.detach())
        self._losses = torch.stack(losses).float()

    def update(self, step: int) -> None:
        """Clips, steps the optimizer at this step's learning rate, and averages the weights."""
        state, cfg = self.state, self.cfg.optim
        for group in state.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(step, self.cfg, self.samples)
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip_norm or float("inf"))
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            update_ema(state.ema, state.model, ema_decay(step, self.cfg, self.samples))
        state.step = step + 1
        self._updated = state.step
        self._unchecked.append((state.step, torch.cat([self._losses, norm.reshape(1)])))

    def skip(self, step: int) -> None:
        """Leaves everything as it is, apart from the step, which all that is to come is a function of."""
        self.state.step = step + 1

    def check(self, weights: bool = False) -> tuple[float, float | None] | None:
        """Loss and norm of the gradient of the last step; None if it was skipped, or looked at before.

        Raises NotFiniteError for the first step since the last look whose loss or gradient is not finite, with
        `weights` also for an update that only left weights that are not.  The loss is the mean over all micro-batches
        in their order, whatever rank ran them.
        """
        last = self._check_steps() if self._unchecked else None
        if weights and self._updated is not None:
            norms = torch._foreach_norm(list(self.state.model.parameters()))
            if not torch.stack(norms).isfinite().all():
                raise NotFiniteError("norm of the weights", self._updated)
            self._updated = None
        return last

    def _check_steps(self) -> tuple[float, float | None] | None:
        steps, mine = zip(*self._unchecked, strict=True)
        self._unchecked = []
        here = torch.stack(mine)  # (steps, micro-batches of this rank + 1)
        gathered = here.new_empty(self.world.size * len(here), here.shape[1])
        dist.all_gather_into_tensor(gathered, here)
        everyone = gathered.view(self.world.size, *here.shape)
        losses = everyone[:, :, :-1].transpose(0, 1).flatten(1).tolist()  # of each step, over all micro-batches
        norms = everyone[0, :, -1].tolist()
        skips = self.state.scaler.is_enabled()  # fp16 tries greater scales now and then, and skips what overflows
        for step, of_step, norm in zip(steps, losses, norms, strict=True):
            if not all(map(math.isfinite, of_step)):
                raise NotFiniteError("loss", step)
            if not (math.isfinite(norm) or skips):
                raise NotFiniteError("gradient", step)
        if steps[-1] != self.state.step:
            return None
        return math.fsum(losses[-1]) / self.cfg.micro_batches, norms[-1] if math.isfinite(norms[-1]) else None

    def forget(self) -> None:
        """After a return to a checkpoint: what came after it is not to be looked at."""
        self._unchecked, self._updated = [], None
