"""Small real runs on several ranks that receive a signal at a chosen step, and the comparison of their results."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.helpers.data_sets import small_config
from vit.checkpoint.format import find_checkpoints, read_manifest
from vit.checkpoint.load import load_checkpoint
from vit.config.schema import Config
from vit.distributed.world import join_process_group
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.metrics import TIMING_KEYS
from vit.train import Trainer
from vit.training.step import AugmentedBatch

STEPS = 6  # of a run with `short_config`
ALL_RANKS = -1
DURING_ROLLBACK = -1  # as a fault's step: after a step was not finite, before the checkpoint is restored
NAN_MICRO_BATCH = 2  # the micro-batch whose pixels are NaN in the steps `nan_steps`


class Fault(NamedTuple):
    """A signal that ranks send to themselves in the middle of a step."""

    step: int
    rank: int
    signal: int


class FaultyTrainer(Trainer):
    """Sends itself the fault's signal, makes pixels of `nan_steps` NaN, and records the samples that it trains on.

    With `nan_steps`, a SIGKILL is sent only after one of these steps was detected.
    """

    fault: Fault | None = None
    nan_steps: tuple[int, ...] = ()

    def train_step(self, step: int, batch: AugmentedBatch) -> None:
        mine = self.world.my_micro_batches(self.schedule.config(step).micro_batches)
        if step in self.nan_steps and NAN_MICRO_BATCH in mine:
            batch.micro_batches[NAN_MICRO_BATCH - mine[0]][0].fill_(math.nan)
        if self.nan_steps and not self.state.skipped and self.fault is not None and self.fault.signal == signal.SIGKILL:
            return super().train_step(step, batch)
        with (self.run.path / f"samples-{self.world.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "samples": batch.samples.tolist()}) + "\n")
        if self.fault is not None and self.fault.signal == signal.SIGKILL:
            self.saver.finish()  # on all ranks: what a kill finds on disk does not depend on the speed of the disk
        if self.fault is not None and self.fault.step == step and self.fault.rank in {self.world.rank, ALL_RANKS}:
            os.kill(os.getpid(), self.fault.signal)
        super().train_step(step, batch)

    def restore(self) -> int | None:
        if self.fault is not None and self.fault.step == DURING_ROLLBACK:
            os.kill(os.getpid(), self.fault.signal)
        return super().restore()


def run_attempt(
    cfg: Config,
    run: Path,
    fault: Fault | None = None,
    allowed_changes: tuple[str, ...] = (),
    nan_steps: tuple[int, ...] = (),
) -> str:
    """Runs one attempt on this rank to its end or to the fault; returns its outcome."""
    with join_process_group(cfg) as world:
        trainer = FaultyTrainer(cfg, RunFolder(run), world, Clock(time.time()), list(allowed_changes))
        trainer.fault, trainer.nan_steps = fault, nan_steps
        outcome = trainer.train()
        trainer.agreement.close()
        trainer.saver.close()
        return outcome.value


def short_config(betons: Path, **changes: Any) -> Config:
    """Six steps of four micro-batches, with all sources of randomness, and an EMA of the weights."""
    cfg = small_config(betons)
    return replace(
        cfg,
        epochs=1,
        global_batch=96,  # 512 samples: 5.33 steps per epoch, so that the last batch contains samples of two epochs
        micro_batch=24,
        model=replace(cfg.model, dropout=0.1, drop_path=0.1),
        augment=replace(cfg.augment, randaugment_ops=1, mixup=0.2, cutmix=1.0, label_smoothing=0.1),
        optim=replace(cfg.optim, lr=3e-3, clip_norm=1.0, ema_decay=0.9),
        log=replace(cfg.log, every_steps=1, eval_every_epochs=0.5, samples=True),
        **changes,
    )


def save_each_step(cfg: Config, log_every_steps: int = 1) -> Config:
    """Saves a checkpoint at each step, and logs (and checks) the loss at every n-th."""
    checkpoint = replace(cfg.checkpoint, every_minutes=1e-6)
    return replace(cfg, checkpoint=checkpoint, log=replace(cfg.log, every_steps=log_every_steps))


def new_run_folder(run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    return run


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return find_checkpoints(RunFolder(run).checkpoints)


def newest_metadata(run: Path) -> dict[str, Any]:
    """The metadata of a run's newest checkpoint."""
    return dict(read_manifest(checkpoints(run)[0])["about"])


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of the last step's checkpoint."""
    newest = checkpoints(run)[0]
    assert newest.name == f"step-{STEPS:08d}"
    return load_checkpoint(newest)[0]


def learning_curve(run: Path) -> list[dict[str, float]]:
    """The learning curve without timings."""
    return [{k: v for k, v in r.items() if k not in TIMING_KEYS} for r in read_lines(RunFolder(run).metrics)]


def trained_samples(run: Path) -> dict[int, list[int]]:
    """The samples of each step, of all ranks in order; asserts that a repeated step had the same samples."""
    steps: dict[int, dict[int, list[int]]] = {}
    for path in sorted(run.glob("samples-*.jsonl")):
        for record in read_lines(path):
            first = steps.setdefault(record["step"], {}).setdefault(int(path.stem[8:]), record["samples"])
            assert first == record["samples"]
    return {step: [i for rank in sorted(ranks) for i in ranks[rank]] for step, ranks in steps.items()}


def logged_samples(run: Path) -> list[tuple[int, int, list[int]]]:
    """The contents of samples.jsonl: step, micro-batch, samples."""
    return sorted((r["step"], r["shard"], r["samples"]) for r in read_lines(RunFolder(run).samples))


def assert_same_tensors(run: Path, expected_run: Path) -> None:
    """Asserts that the final checkpoints of two runs have the same bits."""
    found, expected = final_tensors(run), final_tensors(expected_run)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_same_run(run: Path, expected_run: Path) -> None:
    """Asserts the same final checkpoint, learning curve and samples, to the last bit."""
    assert_same_tensors(run, expected_run)
    assert learning_curve(run) == learning_curve(expected_run)
    assert logged_samples(run) == logged_samples(expected_run)
