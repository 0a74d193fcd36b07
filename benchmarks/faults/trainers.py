"""Trainers of the campaign with disks that cannot be read: one that is killed, and wrong ones that it must notice."""

import os
from collections.abc import Callable
from typing import Any

from vit.checkpoint.format import find_checkpoints
from vit.config.user_error import UserError
from vit.training.trainer import Trainer

Restore = Callable[[Trainer], int | None]


def train_and_save(train_step: Any, last: int) -> Any:
    """A `Trainer.train_step` that saves each step, and kills the process after step `last`."""

    def step_and_save(self: Trainer, step: int, batch: Any) -> None:
        self.save()
        self.saver.finish()
        self.saver.wait_until_pruned()
        if step == last:
            os._exit(9)
        train_step(self, step, batch)

    return step_and_save


def begins_again(restore: Restore) -> Restore:
    """A `Trainer.restore` that takes a run that cannot be read for a new one."""

    def wrong(self: Trainer) -> int | None:
        try:
            return restore(self)
        except (OSError, UserError):
            return None

    return wrong


def quarantines(restore: Restore) -> Restore:
    """A `Trainer.restore` that takes an error of the disk for damage."""

    def wrong(self: Trainer) -> int | None:
        try:
            return restore(self)
        except OSError:
            newest = find_checkpoints(self.run.checkpoints)[0]
            newest.rename(newest.with_name(f"{newest.name}.damaged-0"))
            return restore(self)

    return wrong


WRONG_TRAINERS = {"begins again": begins_again, "quarantines": quarantines}
