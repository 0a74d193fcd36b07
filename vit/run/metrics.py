"""What a run says: metrics.jsonl, Weights & Biases, and a progress line.  No torch: `jobs` draws the same line."""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit.config.schema import Config, flatten
from vit.run.folder import UNWILLING, RunFolder, append, read_lines
from vit.run.fsync import replace, sync

Record = dict[str, Any]

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
    """The samples of each step and shard, once each, whatever happened in between: `{"step", "shard", "samples"}`.

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

    def write(self, step: int, shards: range, samples: list[int]) -> None:
        """Appends what one rank used of the batch that led to `step`, shard after shard."""
        for j, shard in enumerate(shards):
            ids = samples[j * self.micro_batch : (j + 1) * self.micro_batch]
            append(self.path, {"step": step, "shard": shard, "samples": ids})


def _keep(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Leaves in a file of JSON lines those that are wanted, and no half of one.  Its name then survives a power cut."""
    kept = "".join(json.dumps(record) + "\n" for record in read_lines(path) if wanted(record))
    if not path.exists() or path.read_bytes() != kept.encode():  # a full disk is no matter where nothing changes
        replace(path, kept.encode())
    else:
        sync(path.parent)


def best(records: list[Record]) -> Record | None:
    """The evaluation with the best top-1, of the averaged weights where there are any; the first of equals."""
    scored = [r for r in records if "val_top1" in r]
    return max(
        scored, key=lambda r: float(r["val_top1_average" if "val_top1_average" in r else "val_top1"]), default=None
    )


def progress_line(record: Record) -> str:
    """One line for a person: where the run is, how it does and how long it still takes."""
    where = f"epoch {record['epoch']:.2f}/{record['epochs']}  step {record['step']:,}/{record['steps']:,}"
    if "val_top1" in record:
        average = f"  averaged weights {record['val_top1_average']:.2%}" if "val_top1_average" in record else ""
        return f"{where}  test top-1 {record['val_top1']:.2%}  top-5 {record['val_top5']:.2%}{average}"
    minutes, seconds = divmod(round(record["seconds_left"]), 60)
    left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    return (
        f"{where}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
        f"{record['images_per_second']:,.0f} images/s  {left} left"
    )


def show(line: str, lasting: bool = False) -> None:
    """Prints a line; on a terminal each one overwrites the one before, unless that one was to last.

    A job's output is a file in the run folder: one that a full disk does not take is lost, and the run goes on.
    """
    try:
        if not sys.stdout.isatty():
            print(line, flush=True)
        else:
            width = os.get_terminal_size().columns
            print(f"\r\x1b[K{line[: width - 1]}", end="\n" if lasting else "", flush=True)
    except OSError as error:
        if error.errno not in UNWILLING:
            raise


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


class Pace:
    """Images per second and the time that is left, from the steps since the last look."""

    def __init__(self, step: int, global_batch: int) -> None:
        self.global_batch = global_batch
        self._step, self._time = step, time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self._time += seconds

    def measure(self, step: int, steps: int) -> Record:
        """The pace since the last call."""
        now = time.perf_counter()
        per_step = (now - self._time) / max(1, step - self._step)
        self._step, self._time = step, now
        return {
            "images_per_second": round(self.global_batch / per_step, 1),
            "seconds_left": round((steps - step) * per_step, 1),
        }
