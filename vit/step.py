"""One optimizer step of a rank: its shards augmented, run through the model, summed over all ranks; then the update."""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vit import optim
from vit.augment import augment
from vit.config import Config
from vit.data.loader import Batch, Ints
from vit.evaluate import autocast
from vit.gradients import ShardedGradients
from vit.keys import Stream, key
from vit.loss import training_loss
from vit.state import State
from vit.world import World


@dataclass(frozen=True)
class Augmented:
    """What a rank runs in one step."""

    shards: list[tuple[Tensor, Tensor]]  # (m, 3, S, S) float32 and (m, C) float32 of each
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
    shards = [
        augment(
            batch.images[j * m : (j + 1) * m],
            batch.labels[j * m : (j + 1) * m],
            cfg.augment,
            cfg.model.num_classes,
            key(Stream.AUGMENT, cfg.seed, step, shard),
        )
        for j, shard in enumerate(world.my_shards(cfg.shards))
    ]
    return Augmented(shards, batch.samples, stream.record_event() if stream else None)


class Step:
    """Runs steps of one state.  `gradient` and then `update`; `check` before the result is trusted."""

    def __init__(self, cfg: Config, world: World, state: State, samples: int) -> None:
        self.cfg, self.world, self.state, self.samples = cfg, world, state, samples
        if cfg.compile:
            # Block by block: one graph serves them all, and their gradients still leave while backward goes on.
            for model in filter(None, (state.model, state.average)):
                for block in model.blocks:
                    block.compile()
        self.gradients = ShardedGradients(state.model, world, cfg.exact)
        self.autocast = autocast(cfg, world.device)
        self.losses: Tensor | None = None  # of this rank's shards in the last step, on the device: (shards,)
        self.norm = torch.zeros(())  # of the last step's gradient

    def gradient(self, step: int, batch: Augmented) -> None:
        """Leaves the gradient of the mean loss over all shards of all ranks in the parameters."""
        cfg, state, shards = self.cfg, self.state, self.world.my_shards(self.cfg.shards)
        losses = []
        state.model.train()
        if batch.ready is not None:
            torch.cuda.current_stream().wait_event(batch.ready)
        for j, (shard, (images, targets)) in enumerate(zip(shards, batch.shards, strict=True)):
            if batch.ready is not None:  # made on another stream: their memory is not to be used again too soon
                images.record_stream(torch.cuda.current_stream())
                targets.record_stream(torch.cuda.current_stream())
            torch.manual_seed(key(Stream.MODEL, cfg.seed, step, shard))  # dropout and drop path
            with self.gradients.shard(j, len(shards)):
                with self.autocast():
                    loss = training_loss(self.gradients.model(images), targets, cfg.optim.loss)
                state.scaler.scale(loss / cfg.shards).backward()
            losses.append(loss.detach())
        self.losses = torch.stack(losses)

    def update(self, step: int) -> None:
        """Clips, steps the optimizer at this step's learning rate, and averages the weights."""
        state, cfg = self.state, self.cfg.optim
        for group in state.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * optim.learning_rate(step, self.cfg, self.samples)
        state.scaler.unscale_(state.optimizer)
        self.norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip_norm or float("inf"))
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            optim.update_average(state.average, state.model, optim.average_decay(step, self.cfg, self.samples))
        state.step = step + 1

    def check(self) -> tuple[float, float | None]:
        """Loss and gradient norm of the last step.  Raises FloatingPointError: such weights are not to be saved.

        The loss is the mean over all shards in their order, whatever rank ran them.
        """
        assert self.losses is not None
        gathered = torch.empty(self.cfg.shards, device=self.losses.device)
        dist.all_gather_into_tensor(gathered, self.losses.float())
        loss, norm = math.fsum(gathered.tolist()) / self.cfg.shards, float(self.norm)
        skipped = self.state.scaler.is_enabled()  # fp16 tries greater scales now and then, and skips what overflows
        if not math.isfinite(loss) or not (math.isfinite(norm) or skipped):
            what = "gradient" if math.isfinite(loss) else "loss"
            raise FloatingPointError(f"the {what} of step {self.state.step} is not a number; a lower optim.lr may help")
        return loss, norm if math.isfinite(norm) else None
