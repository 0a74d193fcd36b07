"""Logs of training: the learning curve in metrics.jsonl, and the samples of each step.  Imports no torch."""

from collections.abc import Callable
from pathlib import Path

from vit.config.schema import Config
from vit.run.folder import RunFolder
from vit.run.fsync import fsync, replace_file
from vit.run.jsonl import Record, append, append_lines, flush, read_raw_lines
from vit.run.progress import progress_line, show
from vit.run.superseded import work_before
from vit.run.wandb_log import WandbLog

# The values that differ between two otherwise identical runs.
TIMING_KEYS = ("images_per_second", "mfu", "seconds_left", "time", "seconds", "slowest_rank", "slowest_ratio")


class MetricsLog:
    """Rank 0's log of a run that resumes at `step`.

    Records that an interrupted attempt wrote after that step are set aside, so the learning curve has each step once.
    """

    def __init__(self, run: RunFolder, cfg: Config, step: int, repeats_evaluation: bool = True) -> None:
        self.run = run
        self.truncate(step, repeats_evaluation)
        self._wandb = WandbLog(run, cfg, step) if cfg.log.wandb != "off" else None

    def truncate(self, step: int, repeats_evaluation: bool = True) -> None:
        """Sets aside the records after a step and, if it is repeated, the evaluation at it."""
        keep = step + (not repeats_evaluation)  # evaluations before this step
        kept, moved = _set_aside(
            self.run.metrics, lambda r: r["step"] > step or ("loss" not in r and r["step"] >= keep)
        )
        self.before = work_before(kept, moved, step)
        self.best = best_evaluation(kept)

    def write(self, record: Record) -> None:
        """Appends one record and prints it.  An evaluation says which one is the best so far: nobody has to look for it
        in a long file.
        """
        evaluation = "val_top1" in record
        self.best = best_evaluation([*filter(None, [self.best]), record])
        if evaluation and self.best is not None:
            record = record | {"best_top1": top1_of(self.best), "best_epoch": self.best.get("epoch")}
        append(self.run.metrics, record, durable=evaluation)  # it decides which checkpoint is kept as the best
        if self._wandb is not None:
            self._wandb.poll()
        show(progress_line(record))

    def close(self, finished: bool = True) -> None:
        """Waits a limited time until Weights & Biases has everything; less if the run is to be resumed."""
        if self._wandb is not None:
            flush()  # only what is in the file is sent
            self._wandb.close(finished)


class SampleLog:
    """The samples of each step and micro-batch (key `shard`), each recorded once even after interruptions.

    All ranks write to one file.  Before any of them trains, rank 0 sets aside what an interrupted attempt wrote after
    `step`.
    """

    def __init__(self, run: RunFolder, step: int, rank: int) -> None:
        self.path, self.rank = run.samples, rank
        self.truncate(step)

    def truncate(self, step: int) -> None:
        """Sets aside the records after a step."""
        if self.rank == 0:
            _set_aside(self.path, lambda r: r["step"] > step)

    def write(self, step: int, micro_batches: range, samples: list[int]) -> None:
        """Appends the samples that one rank used in the batch that led to `step`, one record per micro-batch."""
        size = len(samples) // len(micro_batches)
        for j, index in enumerate(micro_batches):
            append(self.path, {"step": step, "shard": index, "samples": samples[j * size : (j + 1) * size]})


def _set_aside(path: Path, superseded: Callable[[Record], bool]) -> tuple[list[Record], list[Record]]:
    """Moves the superseded records of a JSON Lines file, and damaged lines, to another file: nothing is destroyed.

    `metrics.jsonl` -> `metrics.superseded.jsonl`.  Survives a power cut.  Returns the records that were kept, and those
    that were moved.  Raises OSError.
    """
    kept, moved = list[tuple[bytes, Record]](), list[tuple[bytes, Record | None]]()
    for text, record in read_raw_lines(path):
        if record is None or "step" not in record or superseded(record):
            moved.append((text, record))
        else:
            kept.append((text, record))
    if moved:
        append_lines(path.with_suffix(f".superseded{path.suffix}"), b"".join(text for text, _ in moved), durable=True)
        replace_file(path, b"".join(text for text, _ in kept))
    elif not kept:
        path.open("ab").close()
    fsync(path.parent)
    return [record for _, record in kept], [record for _, record in moved if record is not None and "step" in record]


def best_evaluation(records: list[Record]) -> Record | None:
    """The evaluation with the best top-1 accuracy, of the EMA if there is one; the first among equals."""
    return max((r for r in records if "val_top1" in r), key=top1_of, default=None)


def top1_of(evaluation: Record) -> float:
    """The accuracy of the EMA, if there is one, else that of the weights."""
    return float(evaluation["val_top1_average" if "val_top1_average" in evaluation else "val_top1"])
