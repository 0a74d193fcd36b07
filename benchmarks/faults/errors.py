"""Failing disks: each writing call fails in turn, once or from then on; and a real file system that is full."""

import errno
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.faults.layer import Layer
from benchmarks.faults.runs import Runs
from vit import train
from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, step_of
from vit.checkpoint.load import load_checkpoint
from vit.kill_attempts import UnexpectedExitError
from vit.run.folder import RunFolder
from vit.training.step import AugmentedBatch
from vit.training.trainer import Outcome, Trainer

STEPS, FIRST_FAULT = 6, 2  # steps of a run; the step after which its disk begins to fail, whose checkpoint is safe
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
DISK_BYTES = 1 << 20  # size of the file system that gets full
Action = Callable[[], object]


@dataclass
class Plan:
    """What happens to the disk before which step.  The ranks inherit it because they are forks."""

    actions: dict[int, Action]
    progress: Path  # on another disk: the last step that training reached
    save_every_step: bool = False  # and wait until each save is complete


_plan = Plan({}, Path())


class FaultyDiskTrainer(Trainer):
    """The trainer, with actions on the disk before some steps."""

    def train_step(self, step: int, batch: AugmentedBatch) -> None:
        if _plan.save_every_step or step in _plan.actions:
            self.save()
            self.saver.finish()
            self.saver.wait_until_pruned()
        if action := _plan.actions.get(step):
            dist.barrier()
            if self.world.rank == 0:
                action()
            dist.barrier()
        super().train_step(step, batch)

    def save_and_finish(self) -> Outcome:
        if self.world.rank == 0:
            _plan.progress.write_text(str(self.state.step))
        return super().save_and_finish()


class Disks:
    """Runs on failing disks.  `problems` lists everything that went wrong."""

    def __init__(self, data: Path, folder: Path) -> None:
        train.Trainer = FaultyDiskTrainer  # type: ignore[misc]
        self.progress, self.number, self.problems = folder / "progress", 0, list[str]()
        _plan.progress = self.progress
        self.runs = Runs(data, folder / "runs", STEPS)
        self.steps = self.runs.steps
        run = self.runs.run("every-step")
        _plan.save_every_step = True
        self.runs.attempt(run, 1, ("--checkpoint.every_minutes", "1e-6", "--checkpoint.keep", "1000")).finish()
        _plan.save_every_step = False
        self.expected = {step_of(p): load_checkpoint(p)[0] for p in find_checkpoints(run.checkpoints)}
        assert len(self.expected) >= self.steps - 1, sorted(self.expected)

    def run(
        self, name: str, actions: dict[int, Action], ranks: int, run: RunFolder, repair: Action
    ) -> tuple[str, Counter[str]]:
        """Trains on the failing disk, calls `repair`, checks the checkpoints, and resumes the run to its end.

        Returns how the first attempt ended, and how many events of each kind it recorded.
        """
        self.number += 1
        _plan.actions = actions
        attempt = self.runs.attempt(run, ranks)
        attempt.end(timeout=120)
        _plan.actions = {}
        repair()
        reached = int(self.progress.read_text()) if self.progress.exists() else 0
        self.progress.unlink(missing_ok=True)
        problems = [f"training ended at step {reached} of {self.steps}"] if reached < self.steps else []
        problems += self._checkpoint_problems(run)
        ended = "finished" if run.finished() else "not saved at the end"
        events = Counter(event["event"] for event in run.events())
        try:
            self.runs.attempt(run, ranks).finish()
            problems += self.runs.differences(run)
        except UnexpectedExitError as error:
            problems.append(str(error))
        self.problems += [f"{name}: {problem}" for problem in problems]
        return ended, events

    def _checkpoint_problems(self, run: RunFolder) -> Iterator[str]:
        """What is wrong with the checkpoints after an attempt."""
        safe = max((event["step"] for event in run.events() if event["event"] == "checkpoint"), default=0)
        steps = [step_of(path) for path in find_checkpoints(run.checkpoints)]
        if max(steps, default=0) < max(safe, FIRST_FAULT):
            yield f"step {max(safe, FIRST_FAULT)} was safe, but {steps} are left"
        for path in find_checkpoints(run.checkpoints):
            try:
                tensors, manifest = load_checkpoint(path)
            except DamagedCheckpointError as error:
                yield f"a damaged checkpoint has a final name: {error}"
                continue
            expected = self.expected.get(manifest["step"])
            if expected is not None and not all(torch.equal(tensors[name], expected[name]) for name in expected):
                yield f"{path} loads, but differs from what was saved"

    def failing_calls(self, layer: Layer, ranks: int, every: int, modes: tuple[str, ...]) -> dict[str, Any]:
        """Lets each `every`-th writing call fail in turn, in a run of its own; returns figures."""
        run = self.runs.run(f"clean-{ranks}")
        self.run("no fault", {FIRST_FAULT: layer.count}, ranks, run, lambda: None)
        calls = layer.stop()[0]
        out: dict[str, Any] = {"calls": calls, "ranks": ranks, "runs": 0, "failed": {}}
        kinds, ends = Counter[str](), Counter[str]()
        for number in range(1, calls + 1, every):
            for mode in modes:
                error = ERRORS[(number + (mode == "from then on")) % len(ERRORS)]
                ended, failed = self._failing_call(layer, ranks, number, error, mode)
                if not failed:
                    continue
                out["runs"] += 1
                kinds[f"{failed} {mode}"] += 1
                ends[f"{mode}: {ended}"] += 1
        return out | {"failed": dict(sorted(kinds.items())), "ended": dict(ends)}

    def _failing_call(self, layer: Layer, ranks: int, number: int, error: int, mode: str) -> tuple[str, str]:
        """A run in which call `number` fails; how it ended, and the call that failed ("" if there were fewer calls)."""
        last = number if mode == "once" else 1 << 40
        run = self.runs.run(f"failing-{self.number}")
        logs = self.progress.with_name(f"{run.path.name}-logs")
        logs.mkdir()
        run.path.mkdir()
        run.logs.symlink_to(logs)  # messages can still be written
        stopped: list[tuple[int, int, str, str]] = []
        name = f"call {number} of {ranks} ranks, {errno.errorcode[error]}, {mode}"
        halved = error != errno.EIO and mode != "once"  # with "once" the program would simply write the second half
        actions: dict[int, Action] = {FIRST_FAULT: lambda: layer.fail(number, last, error, halved)}
        before = len(self.problems)
        ended, events = self.run(name, actions, ranks, run, lambda: stopped.append(layer.stop()))
        _, failures, call, path = stopped[0]
        file = path.removeprefix(str(run.path)).removeprefix("/") or "the run's folder"
        recorded = events["checkpoint failed"] + events["pruning failed"]
        log = (logs / "attempts.log").read_text()
        save = file.startswith("checkpoints") and call not in ("unlink", "rmdir")
        if failures and save and not recorded and not re.search("cannot be (saved|removed)", log):
            self.problems.append(f"{name}: {call} of {file} failed, but it was neither recorded nor logged")
        if len(self.problems) == before:
            shutil.rmtree(run.path)
        return ended, f"{call} of {_kind(file)}" if failures else ""

    def full(self, ranks: int, levels: list[int]) -> dict[str, Any]:
        """Runs on a real file system that gets full except for a few bytes (`levels`), for two steps or to the end."""
        ends, runs = Counter[str](), 0
        for free in levels:
            for until in (FIRST_FAULT + 2, None):
                name = f"a disk with {free} bytes left, {'for two steps' if until else 'to the end'}"
                with small_disk(self.runs.folder / "disk") as disk:
                    if disk is None:
                        return {"skipped": "mounting a file system needs root"}
                    filler = Filler(disk, free)
                    actions = {FIRST_FAULT: filler.write} | ({until: filler.remove} if until else {})
                    ended, _ = self.run(name, actions, ranks, RunFolder(disk / "run"), filler.remove)
                runs += 1
                ends[f"{'for two steps' if until else 'to the end'}: {ended}"] += 1
        return {"runs": runs, "ended": dict(ends)}


class Filler:
    """A file that fills a file system."""

    def __init__(self, disk: Path, free: int) -> None:
        self.file, self.free = disk / "filler", free

    def write(self) -> None:
        """Fills the file system except for `free` bytes."""
        space = os.statvfs(self.file.parent)
        self.file.write_bytes(bytes(max(0, space.f_bavail * space.f_bsize - self.free)))

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mounts a small file system on a folder; yields None if that is not possible."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _kind(file: str) -> str:
    """The kind of a file in a run folder: its name without numbers."""
    if not file.startswith("checkpoints"):
        return file
    _, _, rest = file.partition("/")
    folder, _, name = rest.partition("/")
    return name.split("-")[0] if name else "a checkpoint's folder" if folder else "checkpoints"


def campaign(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Runs all failing disks; returns figures and problems."""
    disks, layer = Disks(data, folder), Layer()
    out: dict[str, Any] = {"full": disks.full(2, [40_000] if quick else list(range(0, 240_000, 16_000)))}
    print(json.dumps(out["full"]), flush=True)
    out["one_rank"] = disks.failing_calls(layer, 1, 66 if quick else 1, ("once", "from then on"))
    print(json.dumps(out["one_rank"]), flush=True)
    out["two_ranks"] = {} if quick else disks.failing_calls(layer, 2, 4, ("once", "from then on"))
    return out | {"problems": disks.problems}
