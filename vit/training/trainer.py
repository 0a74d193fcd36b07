"""The training loop: `Trainer.steps` is the whole story, the methods below it tell the parts.

The trainer returns an `Outcome`.  It never exits the process, requeues a job or reads a variable of Slurm's.
"""

import enum
import time
from collections.abc import Iterator

from vit.checkpoint.resume import initialize_weights, resume, versions
from vit.checkpoint.saver import Saver
from vit.checkpoint.skipped_steps import NotFiniteError, record_skip
from vit.checkpoint.train_state import TrainState
from vit.config import schema
from vit.config.schema import Config
from vit.data.loader import TrainData, ValData, storage_line
from vit.data.stage import staged
from vit.distributed.agreement import Agreed, Agreement
from vit.distributed.world import World
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.run.metrics import MetricsLog, SampleLog
from vit.run.progress import Pace, show
from vit.training.compile_cache import Compiled
from vit.training.milestones import Milestones
from vit.training.scoring import evaluate
from vit.training.step import Augmented, Step, augmented


class Outcome(enum.StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # by a signal; saved, and to be resumed


class Trainer:
    """One attempt at a run: the data, the state, the step, the saver and the logs, put together."""

    def __init__(self, cfg: Config, run: RunFolder, world: World, clock: Clock, accepted: list[str]) -> None:
        """Raises StoppedError if a signal comes while data are copied, ValueError for what the user got wrong."""
        self.cfg, self.run, self.world, self.clock, self.accepted = cfg, run, world, clock, accepted
        self.agreement = Agreement(world)
        self.agreement.install()

        here = staged(cfg, run, world, clock, lambda: self.agreement.received is not None)
        self.train_data, self.val_data = TrainData(here, world), ValData(here, world)
        self.milestones = Milestones(cfg, self.train_data.samples)
        if world.rank == 0:
            show(storage_line(cfg.data, self.train_data, self.val_data), lasting=True)

        self.state = TrainState.fresh(cfg, world.device)
        resumed = self.restore()
        self.compiled = Compiled(run, world) if cfg.compile else None
        self.step = Step(cfg, world, self.state, self.train_data.samples)
        identity = self.identity()
        about = lambda: identity | self.state.about()  # noqa: E731
        self.saver = Saver(run, world, cfg.checkpoint, self.state, about, self.protected, resumed)
        self.unsaved: str | None = None  # why a stop could not save its step

        self.log = MetricsLog(run, cfg, self.state.step) if world.rank == 0 else None
        self.sample_log = SampleLog(run, cfg, self.state.step, world.rank) if cfg.log.samples else None
        self.pace = Pace(self.state.step, cfg.global_batch)

    def train(self) -> Outcome:
        """Runs to the last step, or to a signal; where a step fails, once more without it."""
        while True:
            try:
                return self.steps()
            except NotFiniteError as bad:
                self.roll_back(bad)

    def steps(self) -> Outcome:
        """Runs from the step of the state to the last one, or to a signal.  Raises NotFiniteError."""
        state, milestones = self.state, self.milestones
        for step, batch in zip(range(state.step, milestones.total_steps), self.batches(), strict=True):
            agreed = self.agree(save=self.saver.due)
            if agreed.stop:
                return self.stopped()
            skipped = step + 1 in state.skipped
            evaluation_due = milestones.evaluation_due(step)
            if agreed.save or skipped or evaluation_due or step in milestones.kept:
                self.save()  # before a step that failed too: so that little is done again if the next one does
            if evaluation_due and not self.evaluate():
                return self.stopped()
            self.train_step(step, batch)
            if self.sample_log is not None and not skipped:
                mine = self.world.my_micro_batches(self.cfg.micro_batches)
                self.sample_log.write(state.step, mine, batch.samples.tolist())
            if milestones.log_due(state.step):
                self.report()
        self.save()
        return self.finished() if self.evaluate() else self.stopped()

    def agree(self, save: bool = False) -> Agreed:
        """What all ranks do now: stop, save.  A checkpoint that is being written goes on."""
        agreed = self.agreement.look(save, self.saver.written)
        with self.clock.spend("checkpoint"):
            self.saver.advance(agreed.written)
        return agreed

    def batches(self) -> Iterator[Augmented]:
        """What is left of the training stream, its waiting time booked."""
        start = self.state.step
        batches = self.train_data.batches(start, self.milestones.total_steps)
        return self.clock.waiting("data", augmented(self.cfg, self.world, batches, start))

    def train_step(self, step: int, batch: Augmented) -> None:
        """One optimizer step, its time booked."""
        skipped = step + 1 in self.state.skipped
        compiling = self.cfg.compile and not skipped and not self.clock.seconds.get("compile")
        with self.clock.spend("compile" if compiling else "step"):
            if skipped:
                self.step.skip(step)
                return
            self.step.gradient(step, batch)
            self.saver.protect()  # the update overwrites what may still be on its way into a checkpoint
            self.step.update(step)
            if compiling and self.compiled is not None:
                self.compiled.keep()

    def report(self) -> None:
        """Logs the last step, unless it was skipped."""
        self.report_damage()
        checked = self.step.check()
        if self.log is not None and checked is not None:
            state, (loss, norm) = self.state, checked
            self.log.write(
                self.milestones.position(state.step)
                | {"loss": loss, "lr": state.optimizer.param_groups[0]["lr"], "grad_norm": norm}
                | self.pace.measure(state.step, self.milestones.total_steps)
            )

    def report_damage(self) -> None:
        """Says and records which samples this rank could not decode."""
        for problem in self.train_data.damage.news() + self.val_data.damage.news():
            show(problem, lasting=True)
            self.run.record("damaged sample", rank=self.world.rank, problem=problem)

    def evaluate(self) -> bool:
        """Scores the weights and their EMA; False if a signal came instead."""
        started = time.perf_counter()
        scores: dict[str, float] = {}
        with self.clock.spend("evaluate"):
            for suffix, model in (("", self.state.model), ("_average", self.state.ema)):
                if model is None:
                    continue
                stop = lambda: self.agree().stop  # noqa: E731
                score = evaluate(model, self.val_data, self.cfg, self.world, self.step.autocast, stop)
                if score is None:
                    return False
                scores |= {f"val_top1{suffix}": score.top1, f"val_top5{suffix}": score.top5}
                scores |= {f"val_loss{suffix}": score.loss}
            if self.compiled is not None:
                self.compiled.keep()
        self.report_damage()
        if self.log is not None:
            self.log.write(self.milestones.position(self.state.step) | scores)
        self.scores = scores
        self.pace.pause(time.perf_counter() - started)
        return True

    def save(self) -> None:
        """Has this step saved while training goes on."""
        self.step.check(weights=True)
        started = time.perf_counter()
        with self.clock.spend("checkpoint"):
            self.saver.save()
        self.pace.pause(time.perf_counter() - started)

    def restore(self) -> int | None:
        """Restores the newest whole checkpoint; else the weights of `init_from`; else the state stays as it is.

        Returns the step of that checkpoint, None if there is none.
        """
        resumed = resume(self.run, self.world, self.state, self.recipe(), self.accepted)
        if resumed is None and self.cfg.init_from:
            initialize_weights(self.run, self.world, self.state, self.cfg.init_from)
        return resumed

    def roll_back(self, bad: NotFiniteError) -> None:
        """Returns to the newest checkpoint, which is good, to go on without the step that failed.

        In this order: the step is recorded, what is being written is waited for, the state is that of step 0 and then
        of the checkpoint, and the logs forget what came after it.  Raises FloatingPointError if too many steps failed.
        """
        state, reached = self.state, self.state.step
        with self.clock.spend("rollback"):
            record_skip(self.run, self.world, state, self.recipe(), bad, self.cfg.optim.max_skipped)
            self.saver.finish()
            self.saver.settle()
            state.begin_again(self.cfg)
            self.saver.rolled_back(self.restore())
            self.step.forget()
        self.clock.take_back(reached - state.step)
        self.pace = Pace(state.step, self.cfg.global_batch)
        if self.sample_log is not None:
            self.sample_log.take_back(state.step)
        if self.log is not None:
            self.log.take_back(state.step)
            self.run.note("rolled back", step=state.step, reached=reached)
            show(f"{bad}; back to step {state.step:,}, to go on without step {bad.step:,}", lasting=True)

    def identity(self) -> dict[str, object]:
        """What every checkpoint of this run holds beside its state."""
        about: dict[str, object] = {"recipe": self.recipe(), "config": schema.to_yaml(self.cfg), "versions": versions()}
        return about | {"classes": self.train_data.beton.classes}

    def recipe(self) -> dict[str, object]:
        """What a resumed run must share: every value that decides what is computed, and the data's fingerprint."""
        fingerprint = self.train_data.beton.fingerprint
        data = {f"data.{name}": value for name, value in fingerprint.items()}
        return schema.recipe(self.cfg) | data | {"data.decoder": self.train_data.decoder}

    def protected(self) -> set[int]:
        """The steps whose checkpoints are never pruned: those of `keep_every_epochs`, and the best one so far."""
        best = self.log.best if self.log is not None else None
        return self.milestones.kept | ({int(best["step"])} if best is not None else set())

    def stopped(self) -> Outcome:
        """Saves this step, as far as it is not safe already, and leaves."""
        self.step.check(weights=True)
        with self.clock.spend("checkpoint"):
            self.unsaved = self.saver.secure()
        return Outcome.STOPPED

    def finished(self) -> Outcome:
        """Waits until the last step is safe and old checkpoints are removed.  Raises OSError if it cannot be saved."""
        with self.clock.spend("checkpoint"):
            unsaved = self.saver.secure()
            if unsaved:
                raise OSError(unsaved)
            self.saver.settle()
        return Outcome.FINISHED
