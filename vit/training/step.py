"""One optimizer step of a rank: augmentation, forward and backward of its micro-batches, all-reduce, update."""

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch._dynamo  # now, not once an optimizer is constructed: see vit/run/garbage_collection.py
from torch import Tensor

from vit.augment.pipeline import augment_micro_batches
from vit.checkpoint.skipped_steps import NotFiniteError
from vit.checkpoint.train_state import TrainState
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.data.loader import Batch, Ints
from vit.distributed.gather import gather_on_host
from vit.distributed.gradients import MicroBatchGradients
from vit.distributed.world import SINGLE_RANK, World
from vit.integrity.checksums import row_checksums
from vit.integrity.comparison import RankComparison
from vit.integrity.recompute_plan import is_due, recorded_micro_batch
from vit.optim.clip import clip_and_step
from vit.optim.ema import ema_decay, update_ema
from vit.optim.loss import training_loss
from vit.optim.schedule import learning_rate
from vit.random_keys import Stream, key
from vit.run.folder import RunFolder
from vit.training.compiling import compile_model
from vit.training.cuda_graphs import MicroBatchGraphs
from vit.training.rank_times import Boundary, RankTimes
from vit.training.scoring import autocast


@dataclass(frozen=True)
class AugmentedBatch:
    """The inputs of one step on one rank."""

    micro_batches: list[tuple[Tensor, Tensor]]  # images (m, 3, S, S) float32 and targets (m, C) float32 of each
    samples: Ints  # (B,), index of each sample in the file
    ready: torch.cuda.Event | None  # on a GPU: recorded after the last kernel that produces the batch
    recorded: tuple[Tensor, Tensor] | None = None  # labels, checksums of pixels of the micro-batch that is recomputed


def augmented_batches(
    schedule: RunSchedule, world: World, batches: Iterator[Batch], start: int, times: RankTimes | None = None
) -> Iterator[AugmentedBatch]:
    """Augments the batches from step `start` on; on a GPU one step ahead, on a separate stream."""
    times = times or RankTimes(SINGLE_RANK)
    stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
    ahead: deque[AugmentedBatch] = deque()
    for step in itertools.count(start):
        times.reached(Boundary.BATCH_REQUESTED)
        with torch.cuda.stream(stream):  # the loader's copies to the GPU use this stream too
            batch = next(batches, None)
            if batch is not None:
                times.decoded(batch.seconds)
                ahead.append(_augment_batch(schedule.config(step), world, step, batch, stream))
                times.reached(Boundary.BATCH_AUGMENTED)
        if batch is None and not ahead:
            return
        if batch is None or stream is None or len(ahead) > 1:
            yield ahead.popleft()


def _augment_batch(
    cfg: Config, world: World, step: int, batch: Batch, stream: torch.cuda.Stream | None
) -> AugmentedBatch:
    mine = world.my_micro_batches(cfg.micro_batches)
    recorded = None
    if is_due(cfg, step):  # now: the images are overwritten when the next batch is requested
        j = recorded_micro_batch(cfg, world.size, step)
        part = slice(j * cfg.micro_batch, (j + 1) * cfg.micro_batch)
        recorded = batch.labels[part].clone(), row_checksums(batch.images[part])
    images, targets = augment_step(cfg, step, mine, batch.images, batch.labels)
    micro_batches = list(zip(images.split(cfg.micro_batch), targets.split(cfg.micro_batch), strict=True))
    return AugmentedBatch(micro_batches, batch.samples, stream.record_event() if stream else None, recorded)


def augment_step(
    cfg: Config, step: int, micro_batches: Sequence[int], images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Augments micro-batches of a step, given by their numbers: images (B, 3, S, S) and targets (B, C), float32."""
    keys = [key(Stream.AUGMENT, cfg.seed, step, index) for index in micro_batches]
    return augment_micro_batches(
        images, labels, cfg.augment, cfg.model.num_classes, keys, cfg.mix_distance, cfg.model.image_size
    )


class StepRunner:
    """Runs training steps on a state: `forward_backward` and `update`, or `skip`.

    `check_finite` must be called before the result is saved or logged.  It is separate because it waits for the device.
    With a run folder it also compares the ranks' states.
    """

    def __init__(self, schedule: RunSchedule, world: World, state: TrainState, run: RunFolder | None = None) -> None:
        self.schedule, self.world, self.state = schedule, world, state
        cfg = schedule.cfg
        state.model.activation_checkpointing = cfg.activation_checkpointing
        if cfg.compile:
            compile_model(filter(None, (state.model, state.ema)), shapes=len(schedule.stages) + 1)  # one of evaluation
        self.times = RankTimes(world, wanted=cfg.checks.slow_rank_seconds > 0)
        ready = functools.partial(self.times.reached, Boundary.GRADIENTS)
        self.gradients = MicroBatchGradients(state.model, world, cfg.exact, ready)
        self.autocast = autocast(cfg, world.device)
        graphs = cfg.cuda_graphs and world.device.type == "cuda"
        self.graphs = MicroBatchGraphs(state.model) if graphs else None
        self.comparison = RankComparison(run, world, cfg, state.compared_tensors) if run is not None else None
        self._losses = torch.zeros(())  # of this rank's micro-batches in the last step, on the device: (micro-batches,)
        # Steps that `check_finite` has not seen, each with its losses and gradient norm: (micro-batches + 1,).
        self._unchecked: list[tuple[int, Tensor]] = []
        self._unchecked_update: int | None = None  # the step of the last update, if its weights are not checked

    def augmented(self, batches: Iterator[Batch], start: int) -> Iterator[AugmentedBatch]:
        """The batches of the steps from `start` on, as `forward_backward` takes them."""
        return augmented_batches(self.schedule, self.world, batches, start, self.times)

    def forward_backward(self, step: int, batch: AugmentedBatch) -> None:
        """Computes the gradient of the mean loss over all micro-batches of all ranks, and leaves it in `.grad`."""
        cfg, state = self.schedule.config(step), self.state
        micro_batches = self.world.my_micro_batches(cfg.micro_batches)
        losses = []
        if not state.model.training:  # it was evaluated since the last step
            self.times.exclude()
        state.model.train()
        if batch.ready is not None:
            torch.cuda.current_stream().wait_event(batch.ready)
        self.times.reached(Boundary.STEP)
        share_of_loss = functools.partial(self._share_of_loss, cfg.micro_batches)
        graphs = self.graphs if self.graphs is not None and self.graphs.replays(batch.micro_batches[0][0]) else None
        for j, (index, (images, targets)) in enumerate(zip(micro_batches, batch.micro_batches, strict=True)):
            if batch.ready is not None:  # allocated on another stream: keep the memory until this stream has used it
                images.record_stream(torch.cuda.current_stream())
                targets.record_stream(torch.cuda.current_stream())
            torch.manual_seed(key(Stream.MODEL, cfg.seed, step, index))  # dropout and drop path
            if graphs is not None:
                loss, gradients = graphs.run(share_of_loss, images, targets)
                self.gradients.add(gradients, j, len(micro_batches))
            else:
                with self.gradients.micro_batch(j, len(micro_batches)):
                    loss, scaled = share_of_loss(self.gradients.model, images, targets)
                    scaled.backward()
            losses.append(loss.detach())
        self.times.reached(Boundary.SUMMED)
        self._losses = torch.stack(losses).float()

    def gradient(self, step: int, index: int, images: Tensor, targets: Tensor) -> Sequence[Tensor | None]:
        """The gradient of one micro-batch of a step, for each trained parameter, before it is added to others.

        With CUDA graphs, the next pass overwrites it.
        """
        cfg = self.schedule.config(step)
        self.gradients.clear()  # of the step before, to have its memory
        self.state.model.train()
        torch.manual_seed(key(Stream.MODEL, cfg.seed, step, index))
        share_of_loss = functools.partial(self._share_of_loss, cfg.micro_batches)
        if self.graphs is not None and self.graphs.has_run(images):
            return self.graphs.run(share_of_loss, images, targets)[1]
        _, scaled = share_of_loss(self.state.model, images, targets)
        # Not `backward`, which writes to `.grad` and calls DDP's hooks.
        return torch.autograd.grad(scaled, self.gradients.parameters, allow_unused=True)

    def _share_of_loss(
        self, micro_batches: int, model: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of a micro-batch, and its scaled share of the step's loss, which is differentiated."""
        with self.autocast():
            loss = training_loss(model(images), targets, self.schedule.cfg.optim.loss)
        return loss, self.state.scaler.scale(loss / micro_batches)

    def update(self, step: int) -> None:
        """Clips the gradient, steps the optimizer at this step's learning rate, and updates the EMA."""
        state, cfg = self.state, self.schedule.cfg.optim
        self.times.reached(Boundary.UPDATE)
        lr = learning_rate(step, self.schedule)
        for group in state.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * lr
        norm = clip_and_step(state.model, state.optimizer, state.scaler, cfg.clip_norm)
        if state.ema is not None:
            update_ema(state.ema, state.model, ema_decay(step, self.schedule))
        self.times.reached(Boundary.UPDATED)
        state.step = step + 1
        self._unchecked_update = state.step
        self._unchecked.append((state.step, torch.cat([self._losses, norm.reshape(1)])))
        if self.comparison is not None:
            self.comparison.after_update(state.step)

    def skip(self, step: int) -> None:
        """Counts the step without an update."""
        self.state.step = step + 1

    def check_finite(self, weights: bool = False) -> tuple[float, float | None] | None:
        """Returns loss and gradient norm of the last step; None if it was skipped or is checked already.

        The loss is the mean over all micro-batches in their order, whichever ranks ran them.  Raises NotFiniteError for
        the first unchecked step whose loss or gradient is not finite; with `weights` also if only the updated weights
        are not.  Raises WrongArithmeticError if the ranks' states differ, which `weights` compares in any case.
        """
        if weights and self.comparison is not None:
            self.comparison.before_save(self.state.step)
        last = self._check_gathered()
        if weights and self._unchecked_update is not None:
            norms = torch._foreach_norm(list(self.state.model.parameters()))
            if not torch.stack(norms).isfinite().all():
                raise NotFiniteError("norm of the weights", self._unchecked_update)
            self._unchecked_update = None
        return last

    def _check_gathered(self) -> tuple[float, float | None] | None:
        """Gathers and checks losses and norms of steps, and checksums of states; gathers the times of the ranks."""
        compared, checksums = self.comparison.take_pending() if self.comparison is not None else ([], [])
        if not self._unchecked and not compared:
            return None
        unchecked, self._unchecked = self._unchecked, []
        losses = [torch.cat([values for _, values in unchecked])] if unchecked else []
        times = self.times.own(self.world.device)
        gathered = gather_on_host(self.world, [*losses, times, *checksums])
        self.times.gathered(gathered[len(losses)])
        values, problem = None, None
        if unchecked:
            values, problem = self._check_losses_and_norms(unchecked, gathered[0])
        if self.comparison is not None and compared:
            self.comparison.check(compared, gathered[-1], before=problem.step if problem is not None else None)
        if problem is not None:
            raise problem
        return values

    def _check_losses_and_norms(
        self, unchecked: list[tuple[int, Tensor]], gathered: Tensor
    ) -> tuple[tuple[float, float | None] | None, NotFiniteError | None]:
        """Loss and norm of the last step, unless it was skipped; or the error of the first that is not finite."""
        all_ranks = gathered.split([len(values) for _, values in unchecked], dim=1)
        overflow_allowed = self.state.scaler.is_enabled()  # fp16: GradScaler skips updates that overflow
        for (step, _), of_step in zip(unchecked, all_ranks, strict=True):  # (ranks, micro-batches + 1)
            of_micro_batches = of_step[:, :-1].flatten()
            losses, norm = of_micro_batches.tolist(), of_step[0, -1].item()
            if self.comparison is not None:
                self.comparison.note_losses(step, of_micro_batches)
            if not all(map(math.isfinite, losses)):
                return None, NotFiniteError("loss", step)
            if not (math.isfinite(norm) or overflow_allowed):
                return None, NotFiniteError("gradient", step)
        if step != self.state.step:
            return None, None
        return (math.fsum(losses) / len(losses), norm if math.isfinite(norm) else None), None

    @property
    def losses(self) -> Tensor:
        """The losses of this rank's micro-batches in the last step, on the device: (micro-batches,) float32."""
        return self._losses

    def discard_unchecked(self) -> None:
        """Forgets unchecked steps; called after a rollback, which undoes them."""
        self._unchecked, self._unchecked_update = [], None
        if self.comparison is not None:
            self.comparison.discard()
