"""The schedule of a run: how many steps it has, and what is due at which step.  No torch."""

from dataclasses import dataclass
from functools import cached_property

from vit.config.run_schedule import RunSchedule


@dataclass(frozen=True)
class Milestones:
    """Functions of the step and the schedule of the run.  A step is an optimizer update, from 0."""

    schedule: RunSchedule

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.schedule.total_steps

    @cached_property
    def kept(self) -> set[int]:
        """The steps whose checkpoints are never pruned (`checkpoint.keep_every_epochs`)."""
        cfg = self.schedule.cfg
        every = cfg.checkpoint.keep_every_epochs
        count = int(cfg.epochs / every) if every else 0
        return {self.schedule.steps(i * every) for i in range(1, count + 1)}

    def evaluation_due(self, step: int) -> bool:
        """Whether the last step passed a multiple of `log.eval_every_epochs`; False before the first step."""
        schedule = self.schedule
        every = schedule.cfg.log.eval_every_epochs * schedule.samples / schedule.cfg.global_batch  # work
        return step > 0 and int(schedule.work(step) / every) > int(schedule.work(step - 1) / every)

    def log_due(self, step: int) -> bool:
        """Whether to log the loss of the last step (`log.every_steps`)."""
        return step % self.schedule.cfg.log.every_steps == 0 or step == self.total_steps

    def position(self, step: int) -> dict[str, float]:
        """The fields of a learning curve's record that say how far the run is."""
        epochs = self.schedule.cfg.epochs
        epoch = min(self.schedule.epoch(step), epochs)
        return {"step": step, "steps": self.total_steps, "epoch": round(epoch, 4), "epochs": epochs}
