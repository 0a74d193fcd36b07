"""The training loop.  Start with `Trainer.train` and `Trainer.run_steps`: the other methods are the parts they use.

    decide what to do   agree, protected_steps, repeats_evaluation
    train               batches, train_step
    log and evaluate    log_step, log_damaged_samples, evaluate
    checkpoints         save, restore, roll_back, metadata, recipe
    leave               save_and_stop, save_and_finish

The trainer returns an `Outcome`.  It never exits the process, requeues a job or reads Slurm's environment variables.
"""

import enum
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from vit.checkpoint.resume import initialize_weights, resume, versions
from vit.checkpoint.saved_classes import DataSetClasses, check_head_classes
from vit.checkpoint.saver import Saver
from vit.checkpoint.skipped_steps import NotFiniteError, record_skip, replay_hint, states_before
from vit.checkpoint.train_state import TrainState
from vit.config import schema
from vit.config.schema import Config
from vit.data.dataset_manifest import check_data_sets
from vit.data.loader import TrainData, ValData, storage_summary
from vit.data.stage import stage_data_sets
from vit.distributed.stop_signals import Agreement, StepDecision
from vit.distributed.world import World, device_name, on_rank_0
from vit.history.few_steps import few_steps_of
from vit.run.activity import activity
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.run.metrics import MetricsLog, SampleLog
from vit.run.progress import show
from vit.run.step_times import StepTimes
from vit.training.compile_cache import CompileCache
from vit.training.compiling import CompilePlan
from vit.training.milestones import Milestones
from vit.training.rank_times import watch_ranks
from vit.training.recomputed import recomputation_of, used_sums
from vit.training.run_recipe import run_recipe
from vit.training.scoring import evaluate
from vit.training.step import AugmentedBatch, StepRunner
from vit.training.throughput import Throughput


class Outcome(enum.StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # by a signal; saved, and can be resumed


class Trainer:
    """One attempt at a run: puts together the data, the state, the step, the saver and the logs."""

    def __init__(self, cfg: Config, run: RunFolder, world: World, clock: Clock, allowed_changes: list[str]) -> None:
        """Raises StoppedError if a signal comes while data are staged, UserError for errors that the user can fix."""
        self.cfg, self.run, self.world, self.clock, self.allowed_changes = cfg, run, world, clock, allowed_changes
        self.agreement = Agreement(world)
        self.agreement.install_signal_handlers()

        cfg.check_mixing()
        check_data_sets(cfg.model.num_classes, cfg.data.train, cfg.data.val)
        staged_cfg = stage_data_sets(cfg, run, world, clock, lambda: self.agreement.received_signal is not None)
        alive = lambda: clock.beat("start")  # noqa: E731
        self.train_data, self.val_data = TrainData(staged_cfg, world, alive), ValData(staged_cfg, world, alive=alive)
        self.schedule = self.train_data.schedule
        self.milestones = Milestones(self.schedule)
        if world.rank == 0:
            show(storage_summary(cfg.data, self.train_data, self.val_data), lasting=True)

        self.state = TrainState.fresh(cfg, world.device)
        saved_step = self.restore()
        few = few_steps_of(cfg, self.train_data.samples, world.size)
        if few and saved_step is None and world.rank == 0:
            show(few, lasting=True)
        self.compile_cache = CompileCache(run, world) if cfg.compile else None
        self.compile_plan = CompilePlan(run, world, self.schedule, self.state.step, self.compile_cache)
        self.runner = StepRunner(self.schedule, world, self.state, run)
        self.recomputation = recomputation_of(run, self.runner, self.train_data)

        self.log = MetricsLog(run, cfg, self.state.step, self.repeats_evaluation()) if world.rank == 0 else None
        self.sample_log = SampleLog(run, self.state.step, world.rank) if cfg.log.samples else None
        self.throughput = Throughput(self.schedule.stages, world.size, device_name(world.device), self.state.step)
        self.step_times = StepTimes(run.logs, world.rank)
        self.rank_log = watch_ranks(run, cfg.checks, world)
        self.scores: dict[str, float] = {}  # of the last evaluation

        constant = self.metadata()
        metadata = lambda: constant | self.state.metadata()  # noqa: E731
        self.saver = Saver(run, world, cfg.checkpoint, self.state, metadata, self.protected_steps, saved_step)
        self.save_error: str | None = None  # why the last step could not be saved before a stop

    def train(self) -> Outcome:
        """Trains to the last step or until a signal; after a step that is not finite, rolls back and skips it."""
        try:
            go_on = lambda: not self.agree().stop  # noqa: E731
            if not self.compile_plan.carry_out(self.state.model, self.runner.autocast, self.clock, go_on):
                return self.save_and_stop()
            while True:
                try:
                    return self.run_steps()
                except NotFiniteError as error:
                    self.roll_back(error)
        finally:
            self.step_times.write()
            self.rank_log.write()

    def run_steps(self) -> Outcome:
        """Trains from the state's step to the last one, or until a signal.  Raises NotFiniteError."""
        state, milestones = self.state, self.milestones
        self.throughput.restart(state.step)
        for step, batch in zip(range(state.step, milestones.total_steps), self.batches(), strict=True):
            decision = self.agree(save=self.saver.due)
            if decision.stop:
                return self.save_and_stop()
            skipped = step + 1 in state.skipped
            evaluation_due = milestones.evaluation_due(step)
            if decision.save or skipped or evaluation_due or step in milestones.kept:
                self.save()  # before a skipped step too: a rollback from the steps after it then loses little
            if evaluation_due and not self.evaluate():
                return self.save_and_stop()
            self.train_step(step, batch)
            self.step_times.tick()
            if self.sample_log is not None and not skipped:
                mine = self.world.my_micro_batches(self.schedule.config(step).micro_batches)
                self.sample_log.write(state.step, mine, batch.samples.tolist())
            if milestones.log_due(state.step):
                self.log_step()
        self.save()
        return self.save_and_finish() if self.evaluate() else self.save_and_stop()

    # Decide what to do.

    def agree(self, save: bool = False) -> StepDecision:
        """What all ranks do now (stop, save); also advances a checkpoint that is being written."""
        decision = self.agreement.exchange(save, self.saver.parts_written)
        with self.clock.phase("checkpoint"):
            self.saver.advance(decision.parts_written)
        return decision

    def protected_steps(self) -> set[int]:
        """The steps whose checkpoints are not pruned: of `keep_every_epochs`, the best one, before failed steps."""
        best = self.log.best if self.log is not None else None
        kept = self.milestones.kept | states_before(self.state.skipped)
        return kept | ({int(best["step"])} if best is not None else set())

    def repeats_evaluation(self) -> bool:
        """Whether the evaluation of the state's step follows now; not if the run was extended after its last one."""
        step = self.state.step
        return self.milestones.evaluation_due(step) or step == self.milestones.total_steps

    # Train.

    def batches(self) -> Iterator[AugmentedBatch]:
        """The remaining batches of the run; the time that they are waited for counts as "data"."""
        start = self.state.step
        batches = self.train_data.batches(start, self.milestones.total_steps)
        return self.clock.timed_iterator("data", self.runner.augmented(batches, start))

    def train_step(self, step: int, batch: AugmentedBatch) -> None:
        """Runs one optimizer step, or skips it."""
        skipped = step + 1 in self.state.skipped
        compiling = self.cfg.compile and not skipped and not self.clock.seconds.get("compile")
        shown = activity(self.compile_plan.message, shown=self.world.rank == 0) if compiling else nullcontext()
        with self.clock.phase("compile" if compiling else "step"), shown:
            if skipped:
                self.runner.skip(step)
                return
            with self.recomputation.compared(step, partial(used_sums, batch)):
                self.runner.forward_backward(step, batch)
            self.saver.wait_for_copy()  # the update overwrites tensors that a save may still be copying
            self.runner.update(step)
            if compiling and self.compile_cache is not None:
                self.compile_cache.save()

    # Log and evaluate.

    def log_step(self) -> None:
        """Logs the last step, unless it was skipped."""
        self.log_damaged_samples()
        with self.clock.phase("sync"):  # waits for the steps that a GPU has not done yet
            checked = self.runner.check_finite()
        if self.log is not None and checked is not None:
            state, (loss, norm) = self.state, checked
            self.log.write(
                self.milestones.position(state.step)
                | {"loss": loss, "lr": state.optimizer.param_groups[0]["lr"], "grad_norm": norm}
                | self.throughput.measure(state.step)
                | self.rank_log.observe(self.runner.times.take())
                | self.clock.record()
            )

    def log_damaged_samples(self) -> None:
        """Prints and records the samples that this rank could not decode."""
        for problem in self.train_data.damaged.take_messages() + self.val_data.damaged.take_messages():
            show(problem, lasting=True)
            self.run.record("damaged sample", rank=self.world.rank, problem=problem)

    def evaluate(self) -> bool:
        """Evaluates the weights and their EMA; returns False if a signal interrupted it."""
        started = time.perf_counter()
        scores: dict[str, float] = {}
        with self.clock.phase("evaluate"):
            for suffix, model in (("", self.state.model), ("_average", self.state.ema)):
                if model is None:
                    continue
                stop = lambda: self.agree().stop  # noqa: E731
                score = evaluate(model, self.val_data, self.cfg, self.world, self.runner.autocast, stop)
                if score is None:
                    return False
                scores |= score.record(self.cfg.model.num_classes, suffix)
            if self.compile_cache is not None:
                self.compile_cache.save()
        self.log_damaged_samples()
        if self.log is not None:
            self.log.write(self.milestones.position(self.state.step) | scores | self.clock.record())
        self.scores = scores
        self.throughput.exclude(time.perf_counter() - started)
        self.step_times.exclude()
        return True

    # Checkpoints.

    def save(self) -> None:
        """Starts to save the current step; training continues meanwhile.  Raises NotFiniteError."""
        self.runner.check_finite(weights=True)
        started = time.perf_counter()
        with self.clock.phase("checkpoint"):
            self.saver.save()
        self.throughput.exclude(time.perf_counter() - started)

    def restore(self) -> int | None:
        """Restores the newest intact checkpoint, or else loads the weights of `init_from`, if any.

        Returns the step of that checkpoint, None if there is none.
        """
        cfg, beton = self.cfg, self.train_data.beton
        classes = DataSetClasses(beton.path, beton.classes, beton.names)
        saved_step = resume(self.run, self.world, self.state, self.recipe(), classes, self.allowed_changes)
        if saved_step is None and cfg.init_from:
            if cfg.init_head == "keep":
                on_rank_0(self.world, lambda: check_head_classes(Path(cfg.init_from), classes))
            initialize_weights(self.run, self.world, self.state, cfg.init_from, cfg.init_head == "new")
        return saved_step

    def roll_back(self, error: NotFiniteError) -> None:
        """Returns to the newest checkpoint, all of whose values are finite, to continue without the step that failed.

        In this order: record the step, wait for the save in progress, reset the state to step 0 and then to the
        checkpoint, truncate the logs.  Raises FloatingPointError if too many steps failed.
        """
        state, reached = self.state, self.state.step
        with self.clock.phase("rollback"):
            record_skip(self.run, self.world, state, self.recipe(), error, self.cfg.optim.max_skipped)
            self.saver.finish()
            self.saver.wait_until_pruned()
            state.reset(self.cfg)
            self.saver.reset_to(self.restore())
            self.runner.discard_unchecked()
        self.clock.rewind(reached - state.step)
        self.step_times.exclude()
        if self.sample_log is not None:
            self.sample_log.truncate(state.step)
        if self.log is not None:
            self.log.truncate(state.step, self.repeats_evaluation())
            lost = {name: value for name, value in self.log.before.items() if name == "lost"}
            self.run.note("rolled back", step=state.step, reached=reached, **lost)
            show(f"{error}; rolled back to step {state.step:,}, step {error.step:,} is skipped", lasting=True)
            show(replay_hint(self.run, error.step), lasting=True)

    def metadata(self) -> dict[str, object]:
        """What every checkpoint of this run stores in addition to the state."""
        out: dict[str, object] = {"recipe": self.recipe(), "config": schema.to_yaml(self.cfg), "versions": versions()}
        return out | {"classes": self.train_data.beton.classes, "names": self.train_data.beton.names}

    def recipe(self) -> dict[str, object]:
        """What must not change on resuming: all settings that affect the result, and the fingerprint of the data."""
        return run_recipe(self.cfg, self.train_data)

    # Leave.

    def save_and_stop(self) -> Outcome:
        """Saves the current step, unless it is saved already; `save_error` says why if that fails."""
        self.runner.check_finite(weights=True)
        with self.clock.phase("checkpoint"):
            self.save_error = self.saver.save_before_exit()
        return Outcome.STOPPED

    def save_and_finish(self) -> Outcome:
        """Waits until the last step is saved and read back intact.  Raises OSError if that fails."""
        with self.clock.phase("checkpoint"):
            error = self.saver.save_before_finish()
        if error:
            raise OSError(error)
        return Outcome.FINISHED
