"""The schedule of a run: how many steps it has, and what is due at which step.  No torch."""

from dataclasses import dataclass
from functools import cached_property

from vit.config.schema import Config


@dataclass(frozen=True)
class Milestones:
    """Functions of the step, the config and the size of the training set.  A step is an optimizer update, from 0."""

    cfg: Config
    samples: int  # images of the training set

    @cached_property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.cfg.steps(self.cfg.epochs, self.samples)

    @cached_property
    def kept(self) -> set[int]:
        """The steps whose checkpoints are never pruned (`checkpoint.keep_every_epochs`)."""
        every = self.cfg.checkpoint.keep_every_epochs
        count = int(self.cfg.epochs / every) if every else 0
        return {self.cfg.steps(i * every, self.samples) for i in range(1, count + 1)}

    def evaluation_due(self, step: int) -> bool:
        """Whether the last step passed a multiple of `log.eval_every_epochs`; False before the first step."""
        every = self.cfg.log.eval_every_epochs * self.samples / self.cfg.global_batch
        return step > 0 and int(step / every) > int((step - 1) / every)

    def log_due(self, step: int) -> bool:
        """Whether to log the loss of the last step (`log.every_steps`)."""
        return step % self.cfg.log.every_steps == 0 or step == self.total_steps

    def position(self, step: int) -> dict[str, float]:
        """The fields of a learning curve's record that say how far the run is."""
        epoch = min(step * self.cfg.global_batch / self.samples, self.cfg.epochs)
        return {"step": step, "steps": self.total_steps, "epoch": round(epoch, 4), "epochs": self.cfg.epochs}
