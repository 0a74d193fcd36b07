"""The length of a run and what changes with its steps: image size, micro-batch, RandAugment's magnitude.  No torch.

All are functions of (config, size of the training set, step).  The unit of progress is *work*: the number of steps at
`model.image_size` that count as much as the steps so far.  With `epochs_count: images` each step counts as 1.  With
`pixels` a step at side S counts as (S / image_size)², about its share of the computation: a run then takes as long as
its `epochs` at `model.image_size`, and all that follows epochs follows work: shares, warmup, learning rate,
evaluations.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from vit.config.schema import Config

ROUNDING = 1e-6  # of a step: the shares 0.1, 0.1, 0.1 are 0.30000000000000004, which is not a step more than 0.3


@dataclass(frozen=True)
class Stage:
    """The steps `start` to `stop` - 1, which have images of one size."""

    start: int
    stop: int
    cfg: Config  # the run's, with the image size and the micro-batch of this stage
    work_before: float  # of all steps before `start`
    work_of_step: float


@dataclass(frozen=True)
class RunSchedule:
    """The steps of a run on `samples` images of its training set.  A step is an optimizer update, from 0."""

    cfg: Config
    samples: int

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of `train_sizes` that have steps, in order; one if there are no `train_sizes`."""
        configs, out = self.cfg.stages, list[Stage]()
        start, work, share = 0, 0.0, 0.0
        for i, cfg in enumerate(configs):
            share = 1.0 if i == len(configs) - 1 else share + self.cfg.train_sizes[i][0]
            small = (cfg.model.image_size / self.cfg.model.image_size) ** 2
            each = small if self.cfg.epochs_count == "pixels" else 1.0
            slack = ROUNDING if i < len(configs) - 1 else 0.0
            steps = math.ceil((share * self._work(self.cfg.epochs) - work) / each - slack)
            if steps > 0:
                out.append(Stage(start, start + steps, cfg, work, each))
                start, work = start + steps, work + steps * each
        return tuple(out)

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.stages[-1].stop

    def stage(self, step: int) -> Stage:
        """The stage of a step; the last one also for later steps."""
        return next((stage for stage in self.stages if step < stage.stop), self.stages[-1])

    def config(self, step: int) -> Config:
        """The config of one step: its image size, micro-batch and RandAugment magnitude are those of the step."""
        cfg, augment = self.stage(step).cfg, self.cfg.augment
        if not augment.randaugment_ramp:
            return cfg
        progress = self.work(step) / self._work(self.cfg.epochs)
        most = augment.randaugment_magnitude
        return _with_magnitude(cfg, min(most, int((most + 1) * progress + ROUNDING)))

    def work(self, step: int) -> float:
        """The steps at `model.image_size` that count as much as the first `step` steps."""
        stage = self.stage(step)
        return stage.work_before + (step - stage.start) * stage.work_of_step

    def epoch(self, step: int) -> float:
        """The epochs that are done after the first `step` steps."""
        return self.work(step) * self.cfg.global_batch / self.samples

    def steps(self, epochs: float) -> int:
        """The number of steps after which so many epochs are done."""
        work = self._work(epochs)
        stage = next((s for s in self.stages if work <= s.work_before + (s.stop - s.start) * s.work_of_step), None)
        stage = stage or self.stages[-1]
        return stage.start + math.ceil((work - stage.work_before) / stage.work_of_step)

    def _work(self, epochs: float) -> float:
        return epochs * self.samples / self.cfg.global_batch


@lru_cache(maxsize=256)
def _with_magnitude(cfg: Config, magnitude: int) -> Config:
    return replace(cfg, augment=replace(cfg.augment, randaugment_magnitude=magnitude, randaugment_ramp=False))
