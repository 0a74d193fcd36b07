"""A runs folder as months of work leave it: many runs, and one with a long ledger and many checkpoints."""

import shutil
from pathlib import Path
from typing import Any

from tests.helpers.watched_runs import event, write_lines, write_run
from vit.checkpoint.format import checkpoint_name, commit, write_part
from vit.config.schema import Config
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines

LONG = "long"  # the run with the long ledger
STEPS_BETWEEN = 100  # between its checkpoints


def write_many_runs(folder: Path, runs: int, ledger_lines: int, checkpoints: int, cfg: Config | None = None) -> None:
    """`runs` runs, of which one has so many lines in its ledger and so many checkpoints.

    The others are copies of one: 70 lines in the ledger, and a learning curve of 300 epochs with ten records each.
    Every second one has finished, the others were canceled while their jobs, which differ, waited in the queue.
    """
    first = _write_run(folder / "run-0000", attempts=6, steps=300_000, of=300_000, every=100, saves=6_000, cfg=cfg)
    (first.path / "source").mkdir()
    (first.path / "environment.txt").write_text("command: submit.py\n")
    end = event("finished", 2e5, step=300_000, seconds={"step": 1e5})
    events = read_lines(first.ledger)
    for number in range(runs - 1):
        run = RunFolder(folder / f"run-{number:04d}")
        if number:
            shutil.copytree(first.path, run.path, dirs_exist_ok=True)
        ids = [_with_job(line, str(1000 + number)) for line in events]
        write_lines(run.ledger, [*ids, end] if number % 2 else ids)
    write_long_run(folder / LONG, ledger_lines, checkpoints, cfg)


def write_long_run(folder: Path, ledger_lines: int, checkpoints: int, cfg: Config | None = None) -> RunFolder:
    """A run with many attempts, of which each has recorded its start and end, and six checkpoints."""
    attempts = max(1, ledger_lines // 10)
    saves = 6 * attempts
    steps = saves * STEPS_BETWEEN
    run = _write_run(folder, attempts=attempts, steps=steps, of=2 * steps, every=50, saves=STEPS_BETWEEN, cfg=cfg)
    newest = write_empty_checkpoint(run.checkpoints, steps)
    for number in range(1, checkpoints):
        shutil.copytree(newest, run.checkpoints / checkpoint_name(steps - STEPS_BETWEEN * number))
    return run


def write_empty_checkpoint(folder: Path, step: int) -> Path:
    """An intact checkpoint without tensors."""
    write_part(folder, step, 0, memoryview(b""), [])
    return commit(folder, step, {}, [[]], {"recipe": {}})


def _write_run(folder: Path, **values: Any) -> RunFolder:
    """A run that has ended, with MFU in its records: without, it would be computed."""
    run = write_run(folder, old=True, **values)
    write_lines(run.metrics, [line | ({"mfu": 0.4} if "loss" in line else {}) for line in read_lines(run.metrics)])
    return run


def _with_job(line: dict[str, object], job: str) -> dict[str, object]:
    """An event of another job."""
    changed = dict(line)
    if "job" in changed:
        changed["job"] = job
    if "life" in changed:
        changed["life"] = f"{job}.{str(changed['life']).partition('.')[2]}"
    return changed
