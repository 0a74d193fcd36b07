"""Trains a Vision Transformer: what torchrun starts, one process a GPU.

torchrun --nproc-per-node 2 -m vit.train --config configs/demo.yaml --run-dir runs/demo
"""

import enum
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil

from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.resume import begin, resume, skip, versions
from vit.checkpoint.saver import Saver
from vit.checkpoint.train_state import State
from vit.config import schema
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config
from vit.data.decode import DamagedDataError
from vit.data.loader import TrainData, ValData, storage_line
from vit.data.stage import StoppedError, staged
from vit.distributed.gradients import same_tree
from vit.distributed.world import Agreement, World, end_with_parent, join
from vit.evaluate import evaluate
from vit.run.folder import JOB_VARIABLE, Clock, InUseError, RunFolder, flush
from vit.run.heartbeat import LEAVING, Heartbeat
from vit.run.metrics import MetricsLog, Pace, SampleLog, show
from vit.training.compile_cache import Compiled
from vit.training.step import Augmented, NotFiniteError, Step, augmented

PATIENCE_SECONDS = 60  # with what a killed attempt of the same job left behind


class Outcome(enum.StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # by a signal; saved, and to be resumed


class Trainer:
    """The rooms of one attempt, put together; `train` is the story."""

    def __init__(self, cfg: Config, run: RunFolder, world: World, clock: Clock, accepted: list[str]) -> None:
        self.cfg, self.run, self.world, self.clock, self.accepted = cfg, run, world, clock, accepted
        self.agreement = Agreement(world)
        self.agreement.install()
        here = staged(cfg, run, world, clock, lambda: self.agreement.received is not None)
        self.train_data, self.val_data = TrainData(here, world), ValData(here, world)
        self.samples = self.train_data.samples
        if world.rank == 0:
            show(storage_line(cfg.data, self.train_data, self.val_data), lasting=True)
        self.total_steps = cfg.steps(cfg.epochs, self.samples)
        each = cfg.checkpoint.keep_every_epochs
        kept = range(1, int(cfg.epochs / each) + 1) if each else ()
        self.milestones = {cfg.steps(i * each, self.samples) for i in kept}  # steps whose checkpoints are kept for good
        self.state = State.fresh(cfg, world.device)
        about: dict[str, object] = {"recipe": self.recipe(), "config": schema.to_yaml(cfg), "versions": versions()}
        self.identity = about | {"classes": self.train_data.beton.classes}
        resumed = self.restore()
        self.compiled = Compiled(run, world) if cfg.compile else None
        self.step = Step(cfg, world, self.state, self.samples)
        self.log = MetricsLog(run, cfg, self.state.step) if world.rank == 0 else None
        self.sample_log = SampleLog(run, cfg, self.state.step, world.rank) if cfg.log.samples else None
        self.pace = Pace(self.state.step, cfg.global_batch)
        self.saver = Saver(run, world, cfg.checkpoint, self.state, self.about, self.protected, resumed)
        self.unsaved: str | None = None  # why a stop could not save its step

    def train(self) -> Outcome:
        """Runs to the last step, or to a signal; where a step fails, once more without it."""
        while True:
            try:
                return self.steps()
            except NotFiniteError as bad:
                self.roll_back(bad)

    def steps(self) -> Outcome:
        """Runs from the step of the state to the last one, or to a signal.  Raises NotFiniteError."""
        state, cfg = self.state, self.cfg
        for step, batch in zip(range(state.step, self.total_steps), self.batches(), strict=True):
            stop, save = self.agree(save=self.saver.due)
            if stop:
                return self.stopped()
            skipped = step + 1 in state.skipped
            if save or skipped or self.evaluation_due(step) or step in self.milestones:
                self.save()  # before a step that failed too: so that little is done again if the next one does
            if self.evaluation_due(step) and not self.evaluate():
                return self.stopped()
            self.train_step(step, batch)
            if self.sample_log is not None and not skipped:
                self.sample_log.write(state.step, self.world.my_shards(cfg.shards), batch.samples.tolist())
            if state.step % cfg.log.every_steps == 0 or state.step == self.total_steps:
                self.report()
        self.save()
        return self.finished() if self.evaluate() else self.stopped()

    def agree(self, save: bool = False) -> tuple[bool, bool]:
        """Whether all ranks should (stop, save) now; what is being written goes on."""
        stop, save, written = self.agreement.look(save, self.saver.written)
        with self.clock.spend("checkpoint"):
            self.saver.advance(written)
        return stop, save

    def train_step(self, step: int, batch: Augmented) -> None:
        """One optimizer step, its time booked."""
        skipped = step + 1 in self.state.skipped
        compiling = self.cfg.compile and not skipped and not self.clock.seconds.get("compile")
        with self.clock.spend("compile" if compiling else "step"):
            if skipped:
                self.step.skip(step)
                return
            self.step.gradient(step, batch)
            self.saver.snapshot.protect()  # the update overwrites what may still be on its way into a checkpoint
            self.step.update(step)
            if compiling and self.compiled is not None:
                self.compiled.keep()

    def batches(self) -> Iterator[Augmented]:
        """What is left of the training stream, its waiting time booked."""
        start = self.state.step
        batches = self.train_data.batches(start, self.total_steps)
        return self.clock.waiting("data", augmented(self.cfg, self.world, batches, start))

    def report(self) -> None:
        """Logs the last step, unless it was skipped."""
        self.tell_of_damage()
        checked = self.step.check()
        if self.log is not None and checked is not None:
            state, (loss, norm) = self.state, checked
            self.log.write(
                self.where()
                | {"loss": loss, "lr": state.optimizer.param_groups[0]["lr"], "grad_norm": norm}
                | self.pace.measure(state.step, self.total_steps)
            )

    def tell_of_damage(self) -> None:
        """Says and writes down which samples this rank could not decode."""
        for problem in self.train_data.damage.news() + self.val_data.damage.news():
            show(problem, lasting=True)
            self.run.record("damaged sample", rank=self.world.rank, problem=problem)

    def where(self) -> dict[str, float]:
        """The place of a record on the learning curve."""
        step = self.state.step
        epoch = min(step * self.cfg.global_batch / self.samples, self.cfg.epochs)
        return {"step": step, "steps": self.total_steps, "epoch": round(epoch, 4), "epochs": self.cfg.epochs}

    def evaluation_due(self, step: int) -> bool:
        """Whether a multiple of the evaluation's interval was passed by the last step.  Not at the very start."""
        every = self.cfg.log.eval_every_epochs * self.samples / self.cfg.global_batch
        return step > 0 and int(step / every) > int((step - 1) / every)

    def evaluate(self) -> bool:
        """Scores the weights and their average; False if a signal came instead."""
        started = time.perf_counter()
        scores: dict[str, float] = {}
        with self.clock.spend("evaluate"):
            for suffix, model in (("", self.state.model), ("_average", self.state.average)):
                if model is None:
                    continue
                stop = lambda: self.agree()[0]  # noqa: E731
                score = evaluate(model, self.val_data, self.cfg, self.world, self.step.autocast, stop)
                if score is None:
                    return False
                scores |= {f"val_top1{suffix}": score.top1, f"val_top5{suffix}": score.top5}
                scores |= {f"val_loss{suffix}": score.loss}
            if self.compiled is not None:
                self.compiled.keep()
        self.tell_of_damage()
        if self.log is not None:
            self.log.write(self.where() | scores)
        self.scores = scores
        self.pace.pause(time.perf_counter() - started)
        return True

    def restore(self) -> int | None:
        """Takes over the newest checkpoint, or the weights to begin from; the step that is safe, if there is one."""
        resumed = resume(self.run, self.world, self.state, self.recipe(), self.accepted)
        if resumed is None and self.cfg.init_from:
            begin(self.run, self.world, self.state, self.cfg.init_from)
        return resumed

    def roll_back(self, bad: NotFiniteError) -> None:
        """Returns to the newest checkpoint, which is good, to go on without the step that failed.

        Raises FloatingPointError if too many steps did.
        """
        state, reached = self.state, self.state.step
        with self.clock.spend("rollback"):
            skip(self.run, self.world, state, self.recipe(), bad, self.cfg.optim.max_skipped)
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

    def save(self) -> None:
        """Has this step saved while training goes on."""
        self.step.check(weights=True)
        started = time.perf_counter()
        with self.clock.spend("checkpoint"):
            self.saver.save()
        self.pace.pause(time.perf_counter() - started)

    def about(self) -> dict[str, object]:
        """What a checkpoint holds beside the tensors."""
        return self.identity | self.state.about()

    def protected(self) -> set[int]:
        """The steps whose checkpoints are kept for good, and the best one so far."""
        best = self.log.best if self.log is not None else None
        return self.milestones | ({int(best["step"])} if best is not None else set())

    def recipe(self) -> dict[str, object]:
        """What a resumed run must share: every value that decides what is computed, and the data's fingerprint."""
        fingerprint = self.train_data.beton.fingerprint
        data = {f"data.{name}": value for name, value in fingerprint.items()}
        return schema.recipe(self.cfg) | data | {"data.decoder": self.train_data.decoder}

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


def attempt(cfg: Config, run: RunFolder, world: World, clock: Clock, accepted: list[str]) -> Outcome:
    """One life of a run's processes, from the newest checkpoint on, written down in the ledger."""
    try:
        trainer = Trainer(cfg, run, world, clock, accepted)
    except StoppedError:
        if world.rank == 0:
            safe = max(map(step_of, find_checkpoints(run.checkpoints)), default=0)
            run.record(Outcome.STOPPED.value, step=safe, seconds=clock.summary())
        clock.sign(LEAVING)
        return Outcome.STOPPED
    clock.add("start", time.time() - clock.started - sum(clock.seconds.values()))
    if world.rank == 0:
        if cfg.exact == "bits" and not same_tree(cfg.shards, world.size):
            show(
                f"{world.size} ranks sum {cfg.shards} shards in an order of their own: keep to {world.size}",
                lasting=True,
            )
        run.record("started", step=trainer.state.step, ranks=world.size, device=str(world.device.type))
    outcome = trainer.train()
    trainer.agreement.close()
    clock.sign(LEAVING)
    trainer.saver.close()
    if trainer.log is not None:
        trainer.log.close()
        scores = trainer.scores if outcome is Outcome.FINISHED else {"signal": trainer.agreement.received}
        more = {"unsaved": trainer.unsaved, "skipped": sorted(trainer.state.skipped)}
        more = {name: value for name, value in more.items() if value}
        run.record(outcome.value, step=trainer.saver.safe, seconds=clock.summary(), **scores, **more)
        if trainer.unsaved:
            show(f"stopped; {trainer.unsaved}", lasting=True)
    flush()
    if trainer.unsaved:
        sys.exit(1)
    return outcome


def main(args: list[str] | None = None) -> None:
    """The command line.  Exit code 0 also after a signal, when all is saved; 2 if the user can mend what is wrong."""
    clock = Clock(started=psutil.Process().create_time())
    parser = config_parser("vit.train", "Trains a Vision Transformer, or goes on where its run was.")
    parser.add_argument("--run-dir", type=Path, help="run folder (default: runs/ and the config's name)")
    parser.add_argument(
        "--override-resume", nargs="+", default=[], metavar="SETTING", help="settings that may differ on resuming"
    )
    cfg, options = parse_config(parser, args)
    run = RunFolder(options.run_dir or Path("runs", Path(str(options.config[-1])).stem))
    end_with_parent()
    clock.heart = Heartbeat(run.logs)
    rank = int(os.environ.get("RANK", "0"))
    patience = PATIENCE_SECONDS if JOB_VARIABLE in os.environ else 0
    try:
        with run.owned(patience) if rank == 0 else nullcontext(), join(cfg) as world:
            attempt(cfg, run, world, clock, options.override_resume)
    except InUseError as error:
        sys.exit(_told(error, rank, os.EX_TEMPFAIL if patience else 2))  # a job may find it free later
    except Exception as error:
        if run.path.exists():
            run.record("failed", rank=rank, error=f"{type(error).__name__}: {error}", seconds=clock.summary())
        if not isinstance(error, (ValueError, FloatingPointError, DamagedDataError)):
            raise
        sys.exit(_told(error, 0 if isinstance(error, DamagedDataError) else rank))  # one rank alone knows of damage


def _told(error: Exception, rank: int, code: int = 2) -> int:
    """Tells a person, once, what they can mend; the exit code for that."""
    if rank == 0:
        print(f"vit.train: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
