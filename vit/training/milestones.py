"""Where a run is, and what is due at which step: a function of the config and the number of samples.  No torch."""

from dataclasses import dataclass

from vit.config.schema import Config


@dataclass(frozen=True)
class Milestones:
    """The steps of a run at which something happens besides training.  A step is an optimizer update, from 0."""

    cfg: Config
    samples: int  # images of the training set

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.cfg.steps(self.cfg.epochs, self.samples)

    @property
    def kept(self) -> set[int]:
        """Steps whose checkpoints are never pruned (`checkpoint.keep_every_epochs`)."""
        every = self.cfg.checkpoint.keep_every_epochs
        count = int(self.cfg.epochs / every) if every else 0
        return {self.cfg.steps(i * every, self.samples) for i in range(1, count + 1)}

    def evaluation_due(self, step: int) -> bool:
        """Whether the last step passed a multiple of `log.eval_every_epochs`.  Not before the first step."""
        every = self.cfg.log.eval_every_epochs * self.samples / self.cfg.global_batch
        return step > 0 and int(step / every) > int((step - 1) / every)

    def log_due(self, step: int) -> bool:
        """Whether the loss of the last step goes into the learning curve."""
        return step % self.cfg.log.every_steps == 0 or step == self.total_steps

    def position(self, step: int) -> dict[str, float]:
        """The place of a record on the learning curve."""
        epoch = min(step * self.cfg.global_batch / self.samples, self.cfg.epochs)
        return {"step": step, "steps": self.total_steps, "epoch": round(epoch, 4), "epochs": self.cfg.epochs}
