"""The learning curve in metrics.jsonl, in Weights & Biases, and which samples each step used.  No torch."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit.config.schema import Config, flatten
from vit.run.folder import RunFolder
from vit.run.fsync import fsync, replace_file
from vit.run.jsonl import Record, append, read_lines
from vit.run.progress import progress_line, show

TIMED = ("images_per_second", "seconds_left")  # the values of a record that are never the same twice


class MetricsLog:
    """Rank 0's log of a run that goes on at `step`: what an interrupted attempt wrote after it is taken back.

    The learning curve then has each step once, whatever happened in between.
    """

    def __init__(self, run: RunFolder, cfg: Config, step: int) -> None:
        self.run = run
        self.take_back(step)
        self._wandb = _start_wandb(run, cfg) if cfg.log.wandb != "off" else None

    def take_back(self, step: int) -> None:
        """Forgets what was written after a step, and its evaluation, which comes again."""
        _keep(self.run.metrics, lambda r: r["step"] <= step and ("loss" in r or r["step"] < step))
        self.best = best(read_lines(self.run.metrics))

    def write(self, record: Record) -> None:
        """Appends one record and shows it."""
        evaluation = "val_top1" in record
        append(self.run.metrics, record, durable=evaluation)  # which checkpoint is the best must not be forgotten
        self.best = best([*filter(None, [self.best]), record])
        if self._wandb is not None:
            self._wandb.log(record)
        show(progress_line(record))

    def close(self) -> None:
        """Flushes what is still on its way."""
        if self._wandb is not None:
            self._wandb.finish()


class SampleLog:
    """The samples of each step and micro-batch (`shard`), once each, whatever happened in between.

    All ranks write to one file.  Rank 0 takes back what an interrupted attempt wrote after `step`, before any of them
    has done a step.
    """

    def __init__(self, run: RunFolder, cfg: Config, step: int, rank: int) -> None:
        self.path, self.micro_batch, self.rank = run.samples, cfg.micro_batch, rank
        self.take_back(step)

    def take_back(self, step: int) -> None:
        """Forgets what was written after a step."""
        if self.rank == 0:
            _keep(self.path, lambda r: r["step"] <= step)

    def write(self, step: int, micro_batches: range, samples: list[int]) -> None:
        """Appends what one rank used of the batch that led to `step`, micro-batch after micro-batch."""
        for j, index in enumerate(micro_batches):
            ids = samples[j * self.micro_batch : (j + 1) * self.micro_batch]
            append(self.path, {"step": step, "shard": index, "samples": ids})


def _keep(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Leaves in a file of JSON lines those that are wanted, and no half of one.  Its name then survives a power cut."""
    kept = "".join(json.dumps(record) + "\n" for record in read_lines(path) if wanted(record))
    if not path.exists() or path.read_bytes() != kept.encode():  # a full disk is no matter where nothing changes
        replace_file(path, kept.encode())
    else:
        fsync(path.parent)


def best(records: list[Record]) -> Record | None:
    """The evaluation with the best top-1, of the averaged weights where there are any; the first of equals."""
    scored = [r for r in records if "val_top1" in r]
    return max(
        scored, key=lambda r: float(r["val_top1_average" if "val_top1_average" in r else "val_top1"]), default=None
    )


def _start_wandb(run: RunFolder, cfg: Config) -> Any:
    """One run of Weights & Biases for the whole life of a run folder, across restarts."""
    import wandb

    id_file = run.path / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8])
    session = wandb.init(
        project=cfg.log.wandb_project,
        name=run.path.name,
        id=id_file.read_text(),
        resume="allow",
        dir=run.path,
        mode="offline" if cfg.log.wandb == "offline" else "online",
        config=flatten(cfg),
    )
    # Not W&B's own step, which may not go back: after a crash some steps are run, and logged, once more.
    session.define_metric("*", step_metric="step")
    return session
