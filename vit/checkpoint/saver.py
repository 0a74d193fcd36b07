"""Saves a run while it goes on: when, what is kept, and what happens if the disk does not want it.

At a step boundary each rank copies its share of the state aside, and trains on while its writer writes it.  Once all
ranks know that all parts are on the disk, rank 0's writer gives the checkpoint its manifest and its name, reads it
back, and only then removes old ones.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.distributed as dist

from vit.checkpoint.snapshot import Snapshot, lay_out
from vit.checkpoint.train_state import TrainState
from vit.checkpoint.writer import Answer, Writer
from vit.config.schema import CheckpointConfig
from vit.distributed.world import World
from vit.run.folder import RunFolder
from vit.run.progress import show

SHORTEST, LONGEST = 60.0, 1800.0  # seconds between two checkpoints, where they are chosen


def interval(cost: float, between_failures: float) -> float:
    """Seconds between two checkpoints that waste the least time, if each costs `cost` seconds of training.

    Daly 2006, https://doi.org/10.1016/j.future.2004.11.016; its first term is the formula of Young 1974,
    https://doi.org/10.1145/361147.361115.  Within bounds, as both seconds are estimates.
    """
    x = cost / (2 * between_failures)
    best = math.sqrt(2 * cost * between_failures) * (1 + math.sqrt(x) / 3 + x / 9) - cost if x < 1 else LONGEST
    return min(max(best, SHORTEST), LONGEST)


@dataclass
class _Save:
    step: int | None
    about: Mapping[str, Any] = field(default_factory=dict)
    before: int | None = None  # the step that was safe before this one was
    started: float = field(default_factory=time.monotonic)
    stall: float = 0.0  # seconds that training stood still
    cpu_seconds: float = 0.0  # that the writer took


class Saver:
    """One rank's part in saving a run.  Every rank calls `save`, `advance`, `finish` and `secure` at the same steps.

    One save is under way at a time.  Rank 0 decides and tells: `about` is what a checkpoint holds beside the tensors,
    `protected` the steps that are never pruned, and `safe` the newest step that can be resumed.
    """

    def __init__(
        self,
        run: RunFolder,
        world: World,
        cfg: CheckpointConfig,
        state: TrainState,
        about: Callable[[], Mapping[str, Any]],
        protected: Callable[[], set[int]],
        safe: int | None = None,
    ) -> None:
        self.run, self.world, self.cfg, self.state, self.safe = run, world, cfg, state, safe
        self.about, self.protected = about, protected
        self.layout = lay_out(state.tensors(), world.size)
        self.snapshot = Snapshot(self.layout, world.rank, world.device)
        self.writer = Writer(self.snapshot.memory, self.snapshot.size)
        self.writer.start()
        self.begun = 0  # saves begun, by all ranks
        self.written = 0  # those whose part this rank has written, or failed to
        self._collected = 0  # those of which all ranks know what came of their parts
        self.undecided = 0  # rank 0: those of which all parts are there, but which have neither a name nor failed
        self._save = _Save(safe)  # the newest one
        self._copying = False
        self._part = Answer()  # what came of this rank's part of it
        self._failure: Answer | None = None  # of the newest save, unless that is safe
        self._failures = 0
        self._unpruned = False
        self._late = False
        self.every = 60 * cfg.every_minutes or SHORTEST  # seconds

    @property
    def due(self) -> bool:
        """Whether rank 0's clock asks for a save; the others follow it.  One that is still being written delays it."""
        past = time.monotonic() - self._save.started
        if self.world.rank != 0 or past < self.every:
            return False
        busy = self.begun > self._collected or self.writer.busy
        if busy and not self._late:
            self.run.note("checkpoint delayed", behind=self._save.step, seconds=round(past, 3))
        self._late = busy
        return not busy

    def save(self) -> None:
        """Copies this step aside, to be written while training goes on; not twice.

        A part that is still being written is waited for.
        """
        if self._save.step != self.state.step:
            self._collect()
            self._begin()

    def advance(self, written: int) -> None:
        """Goes on with what is under way, without waiting.  `written` is the least of all ranks' `written`, agreed."""
        self._poll()
        if written > self._collected:
            self._collect()

    def finish(self) -> int | None:
        """Waits until the save under way is safe, or has failed; returns the newest safe step, on all ranks."""
        self._collect()
        while self.undecided:
            self._poll(wait=True)
        told = [(self.safe, self._failure)]
        dist.broadcast_object_list(told)
        self.safe, self._failure = told[0]
        return self.safe

    def secure(self) -> str | None:
        """Saves this step before the run leaves; a message if that failed, which names the newest safe step.

        Where there is no room, checkpoints that would be pruned next go first.
        """
        if self.finish() != self.state.step:
            self._begin()
        if self.finish() != self.state.step and self._failure is not None and self._failure.no_room:
            if self.world.rank == 0:
                self.writer.ask(partial(self._tidied, self._save), "prune", self.run.checkpoints, 1, self.protected())
                self.settle()
            dist.barrier()
            self._begin()
            self.finish()
        if self.safe == self.state.step:
            return None
        assert self._failure is not None
        return f"step {self.state.step:,} is not saved: {self._failure.error}; {self._safe_step()}"

    def rolled_back(self, safe: int | None) -> None:
        """The state is that of the newest safe step again, or of the beginning.  After `finish` and `settle`."""
        self.safe, self._save = safe, _Save(safe)

    def protect(self) -> None:
        """Must be called before the state changes: what is still being copied of it is waited for."""
        self.snapshot.protect()

    def settle(self) -> None:
        """Waits until the newest checkpoint is read back and old ones are removed."""
        while self.writer.busy:
            self.writer.poll(wait=True)

    def close(self) -> None:
        """Ends the writer, at once."""
        if self._failures and self.world.rank == 0:
            show(f"{self._failures:,} saves failed on the way, see {self.run.ledger}", lasting=True)
        self.writer.close()
        self.snapshot.close()

    def _begin(self) -> None:
        start = time.perf_counter()
        self.begun, self._late = self.begun + 1, False
        self._save = _Save(self.state.step, self.about() if self.world.rank == 0 else {})
        self.snapshot.take(self.state.tensors())
        self._copying = True
        self._poll()
        self._save.stall += time.perf_counter() - start

    def _poll(self, wait: bool = False) -> None:
        if self._copying and self.snapshot.taken(wait):
            self._copying = False
            place = self.run.checkpoints, self._save.step, self.world.rank, self.snapshot.sizes
            self.writer.ask(self._wrote, "write", *place)
        self.writer.poll(wait)

    def _wrote(self, answer: Answer) -> None:
        self._part = answer
        self._save.cpu_seconds += answer.cpu_seconds
        self.written += 1

    def _collect(self) -> None:
        """Tells all ranks what came of all parts; rank 0 has the checkpoint named, if they are all there."""
        if self.begun == self._collected:
            return
        while self.written < self.begun:
            self._poll(wait=True)
        start, save = time.perf_counter(), self._save
        parts: list[Answer] = [Answer()] * self.world.size
        dist.all_gather_object(parts, self._part)
        self._collected += 1
        if self.world.rank == 0:
            self.undecided += 1
            failed = next((part for part in parts if part.error), None)
            if failed is not None:
                self._failed(save, failed)
            else:
                logs = self.run.metrics, self.run.samples
                what = self.layout, [part.result for part in parts], save.about, logs
                self.writer.ask(partial(self._named, save), "commit", self.run.checkpoints, save.step, *what)
        save.stall += time.perf_counter() - start

    def _named(self, save: _Save, answer: Answer) -> None:
        if answer.error:
            self._failed(save, answer)
            return
        save.before, self.safe = self.safe, save.step
        self.undecided -= 1
        seconds = round(time.monotonic() - save.started, 3)
        self.run.note("checkpoint", step=save.step, seconds=seconds, stall=round(save.stall, 4))
        if self._failure is not None:
            show(f"step {save.step:,} is saved, after all", lasting=True)
            self._failure = None
        self.writer.ask(partial(self._tidied, save), "prune", self.run.checkpoints, self.cfg.keep, self.protected())

    def _tidied(self, save: _Save, answer: Answer) -> None:
        save.cpu_seconds += answer.cpu_seconds
        if not self.cfg.every_minutes:
            # What the writer's core could have done instead is lost to training at most.
            self.every = interval(save.stall + save.cpu_seconds, 3600 * self.cfg.expected_failure_hours)
        if answer.error:
            self.run.note("pruning failed", error=answer.error)
            if not self._unpruned:
                show(f"old checkpoints cannot be removed: {answer.error}", lasting=True)
            self._unpruned = True
        elif answer.result:
            self.safe = save.before
            show(answer.result, lasting=True)
            self.run.record("damaged checkpoint", problem=answer.result)

    def _failed(self, save: _Save, answer: Answer) -> None:
        """Training goes on; the user is told once, and the ledger each time."""
        self._failures += 1
        self.run.note("checkpoint failed", step=save.step, error=answer.error, safe=self.safe)
        if self._failure is None:
            told = "training goes on and tries again"
            show(f"step {save.step:,} cannot be saved: {answer.error}; {told}; {self._safe_step()}", lasting=True)
        self._failure = answer
        self.writer.ask(self._discarded, "discard", self.run.checkpoints, save.step)

    def _discarded(self, _: Answer) -> None:
        self.undecided -= 1

    def _safe_step(self) -> str:
        return "no step is safe yet" if self.safe is None else f"step {self.safe:,} is the newest safe one"
