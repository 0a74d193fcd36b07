"""Saves checkpoints while training continues: when to save, what to keep, and what to do if the disk fails.

At a step boundary each rank copies its part of the state to memory, and trains on while its writer process writes the
copy.  Once all ranks know that all parts are on disk, rank 0's writer commits the checkpoint (manifest, rename), reads
it back, and only then removes old checkpoints.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.distributed as dist

from vit.checkpoint.format import ReadBack, checkpoint_name
from vit.checkpoint.snapshot import Snapshot, make_layout
from vit.checkpoint.train_state import TrainState
from vit.checkpoint.writer import TaskResult, Writer
from vit.config.sections import CheckpointConfig
from vit.distributed.world import World
from vit.run.folder import RunFolder
from vit.run.progress import show

MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 60.0, 1800.0  # bounds of the automatic checkpoint interval
READ_BACK_ATTEMPTS = 3  # of a run's last checkpoint


def optimal_interval(cost: float, mean_time_between_failures: float) -> float:
    """The checkpoint interval (seconds) that wastes the least time, if a checkpoint costs `cost` seconds of training.

    Daly 2006, https://doi.org/10.1016/j.future.2004.11.016; its first term is the formula of Young 1974,
    https://doi.org/10.1145/361147.361115.  Clamped to bounds, as both arguments are estimates.
    """
    x = cost / (2 * mean_time_between_failures)
    young = math.sqrt(2 * cost * mean_time_between_failures)
    best = young * (1 + math.sqrt(x) / 3 + x / 9) - cost if x < 1 else MAX_INTERVAL_SECONDS
    return min(max(best, MIN_INTERVAL_SECONDS), MAX_INTERVAL_SECONDS)


@dataclass
class _Save:
    step: int | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    stall: float = 0.0  # seconds that training waited
    cpu_seconds: float = 0.0  # CPU time of the writer


class Saver:
    """One rank's part in saving a run.

    Collective: all ranks must call `save`, `advance`, `finish` and `save_before_exit` at the same steps.  One save is
    in progress at a time.  Rank 0 decides when to save and what to keep: `metadata` returns what a checkpoint stores
    in addition to the tensors, `protected` the steps that are never pruned.  `saved_step` is the newest committed step,
    `intact_step` the newest one that was read back from disk (of rank 0).
    """

    def __init__(
        self,
        run: RunFolder,
        world: World,
        cfg: CheckpointConfig,
        state: TrainState,
        metadata: Callable[[], Mapping[str, Any]],
        protected: Callable[[], set[int]],
        saved_step: int | None = None,
    ) -> None:
        self.run, self.world, self.cfg, self.state, self.saved_step = run, world, cfg, state, saved_step
        self.metadata, self.protected = metadata, protected
        self.intact_step: int | None = None
        self.layout = make_layout(state.tensors(), world.size)
        self.snapshot = Snapshot(self.layout, world.rank, world.device)
        self.writer = Writer(self.snapshot.fd, self.snapshot.num_bytes)
        self.writer.start()
        self.saves_started = 0  # the same on all ranks
        self.parts_written = 0  # by this rank, including those that failed
        self._parts_gathered = 0  # saves of which all ranks know the results of all parts
        self.pending_commits = 0  # rank 0: saves whose parts are gathered, but that are neither committed nor failed
        self._save = _Save(saved_step)  # the newest save
        self._copying = False
        self._part_result = TaskResult()  # of this rank's part of the newest save
        self._last_failure: TaskResult | None = None  # cleared by the next successful save
        self._failure_count = 0
        self._pruning_error_shown = False
        self._read_back_error = ""  # what the newest attempt to read a checkpoint back found
        self._delay_noted = False
        self.interval = 60 * cfg.every_minutes or MIN_INTERVAL_SECONDS  # seconds

    @property
    def due(self) -> bool:
        """Whether rank 0 asks for a save now; False on other ranks.  A save that is still being written delays it."""
        elapsed = time.monotonic() - self._save.started
        if self.world.rank != 0 or elapsed < self.interval:
            return False
        busy = self.saves_started > self._parts_gathered or self.writer.busy
        if busy and not self._delay_noted:
            self.run.note("checkpoint delayed", behind=self._save.step, seconds=round(elapsed, 3))
        self._delay_noted = busy
        return not busy

    def save(self) -> None:
        """Starts to save the current step, unless that is done already; training may continue.

        Waits for a part that is still being written.
        """
        if self._save.step != self.state.step:
            self._gather_parts()
            self._start_save()

    def advance(self, parts_written: int) -> None:
        """Continues the save in progress without waiting.  `parts_written` is the minimum over all ranks."""
        self._poll()
        if parts_written > self._parts_gathered:
            self._gather_parts()

    def finish(self) -> int | None:
        """Waits until the save in progress is committed or has failed; returns the newest saved step, on all ranks."""
        self._gather_parts()
        while self.pending_commits:
            self._poll(wait=True)
        shared = [(self.saved_step, self._last_failure)]
        dist.broadcast_object_list(shared)
        self.saved_step, self._last_failure = shared[0]
        return self.saved_step

    def save_before_exit(self) -> str | None:
        """Saves the current step and waits for it.  Returns None, or a message with the newest saved step if it failed.

        If the disk is full, removes the checkpoints that would be pruned next, and tries once more.
        """
        if self.finish() != self.state.step:
            self._start_save()
        if self.finish() != self.state.step and self._last_failure is not None and self._last_failure.disk_full:
            if self.world.rank == 0:
                self._prune(self._save, keep=1)
                self.wait_until_pruned()
            dist.barrier()
            self._start_save()
            self.finish()
        if self.saved_step == self.state.step:
            return None
        # Without a failure it was saved, but already found damaged when it was read back.
        why = self._last_failure.error if self._last_failure else "it was damaged on the disk"
        return f"step {self.state.step:,} is not saved: {why}; {self._newest_saved()}"

    def save_before_finish(self) -> str | None:
        """As `save_before_exit`, but also reads the checkpoint back, and saves it again if it is damaged."""
        for _ in range(READ_BACK_ATTEMPTS):
            error = self.save_before_exit()
            if error is not None and self._last_failure is not None:
                return error
            self.wait_until_pruned()
            if self.world.rank == 0 and self.intact_step != self.saved_step == self.state.step:  # it was not readable
                self._prune(self._save, self.cfg.keep)
                self.wait_until_pruned()
            shared = [(self.intact_step, self._read_back_error)]
            dist.broadcast_object_list(shared)
            intact_step, problem = shared[0]
            if intact_step == self.state.step:
                return None
        return f"step {self.state.step:,} could not be read back after it was saved: {problem}"

    def reset_to(self, saved_step: int | None) -> None:
        """Call this after a rollback to `saved_step` (None: step 0); `finish` and `wait_until_pruned` come before."""
        self.saved_step, self._save = saved_step, _Save(saved_step)

    def wait_for_copy(self) -> None:
        """Must be called before the state changes: waits for the copy of the state in progress."""
        self.snapshot.wait_for_copy()

    def wait_until_pruned(self) -> None:
        """Waits until the newest checkpoint is verified and old ones are removed."""
        while self.writer.busy:
            self.writer.poll(wait=True)

    def close(self) -> None:
        """Kills the writer and releases the snapshot."""
        if self._failure_count and self.world.rank == 0:
            show(f"{self._failure_count:,} saves failed during this run; see {self.run.ledger}", lasting=True)
        self.writer.close()
        self.snapshot.close()

    def _start_save(self) -> None:
        start = time.perf_counter()
        self.saves_started, self._delay_noted = self.saves_started + 1, False
        self._save = _Save(self.state.step, self.metadata() if self.world.rank == 0 else {})
        self.snapshot.start_copy(self.state.tensors())
        self._copying = True
        self._poll()
        self._save.stall += time.perf_counter() - start

    def _poll(self, wait: bool = False) -> None:
        """Submits the part to the writer once it is copied, and handles results of the writer."""
        if self._copying and self.snapshot.is_copied(wait):
            self._copying = False
            args = self.run.checkpoints, self._save.step, self.world.rank, self.snapshot.sizes
            self.writer.submit(self._on_part_written, "write", *args)
        self.writer.poll(wait)

    def _on_part_written(self, result: TaskResult) -> None:
        self._part_result = result
        self._save.cpu_seconds += result.cpu_seconds
        self.parts_written += 1

    def _gather_parts(self) -> None:
        """Gathers the results of all parts on all ranks; rank 0 then has the checkpoint committed, or discarded."""
        if self.saves_started == self._parts_gathered:
            return
        while self.parts_written < self.saves_started:
            self._poll(wait=True)
        start, save = time.perf_counter(), self._save
        parts: list[TaskResult] = [TaskResult()] * self.world.size
        dist.all_gather_object(parts, self._part_result)
        self._parts_gathered += 1
        if self.world.rank == 0:
            self.pending_commits += 1
            failed = next((part for part in parts if part.error), None)
            if failed is not None:
                self._on_save_failed(save, failed)
            else:
                logs = self.run.metrics, self.run.samples
                args = save.step, self.layout, [part.value for part in parts], save.metadata, logs
                self.writer.submit(partial(self._on_committed, save), "commit", self.run.checkpoints, *args)
        save.stall += time.perf_counter() - start

    def _on_committed(self, save: _Save, result: TaskResult) -> None:
        if result.error:
            self._on_save_failed(save, result)
            return
        self.saved_step = save.step
        self.pending_commits -= 1
        seconds = round(time.monotonic() - save.started, 3)
        self.run.note("checkpoint", step=save.step, seconds=seconds, stall=round(save.stall, 4))
        if self._last_failure is not None:
            show(f"saving works again: step {save.step:,} is saved", lasting=True)
            self._last_failure = None
        self._prune(save, self.cfg.keep)

    def _prune(self, save: _Save, keep: int) -> None:
        """Has the newest checkpoint read back, and then old ones removed."""
        self.writer.submit(partial(self._on_pruned, save), "prune", self.run.checkpoints, keep, self.protected())

    def _on_pruned(self, save: _Save, result: TaskResult) -> None:
        save.cpu_seconds += result.cpu_seconds
        if not self.cfg.every_minutes:
            # An upper bound of the cost: training could have used the writer's core.
            cost = save.stall + save.cpu_seconds
            self.interval = optimal_interval(cost, 3600 * self.cfg.expected_failure_hours)
        found: ReadBack = result.value or ReadBack(state="unreadable", problem=result.error or "")
        self._read_back_error = found.problem
        if found.state == "intact":
            self.intact_step = found.step
            if found.step != self.saved_step:  # it is missing
                self._read_back_error = f"{self.run.checkpoints / checkpoint_name(save.step or 0)} is missing"
                self.saved_step = found.step
        if found.state == "damaged":  # quarantined if it could be renamed
            self.saved_step = found.older
            show(found.problem, lasting=True)
            self.run.record("damaged checkpoint", problem=found.problem, step=found.step)
        elif found.problem:
            self.run.note("pruning failed", error=found.problem)
            if not self._pruning_error_shown:
                show(f"old checkpoints cannot be removed: {found.problem}", lasting=True)
            self._pruning_error_shown = True

    def _on_save_failed(self, save: _Save, result: TaskResult) -> None:
        """Lets training continue; prints the first of consecutive failures, and records each in the ledger."""
        self._failure_count += 1
        self.run.note("checkpoint failed", step=save.step, error=result.error, safe=self.saved_step)
        if self._last_failure is None:
            plan = "training continues and retries at the next save"
            show(f"step {save.step:,} cannot be saved: {result.error}; {plan}; {self._newest_saved()}", lasting=True)
        self._last_failure = result
        self.writer.submit(self._on_discarded, "discard", self.run.checkpoints, save.step)

    def _on_discarded(self, _: TaskResult) -> None:
        self.pending_commits -= 1

    def _newest_saved(self) -> str:
        return "no step is saved yet" if self.saved_step is None else f"the newest saved step is {self.saved_step:,}"
