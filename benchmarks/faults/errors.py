"""A disk that refuses: every call that writes fails in turn, once or from then on, and a real disk that is full."""

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
from vit.kill_attempts import EndedError
from vit.run.folder import RunFolder
from vit.train import Outcome, Trainer
from vit.training.step import Augmented

STEPS, BEGIN = 6, 2  # of a run, and those after which its disk begins to refuse; that step is safe
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
DISK = 1 << 20  # bytes, of the full one
Act = Callable[[], object]


@dataclass
class Plan:
    """What becomes of the disk before a step: forks inherit it."""

    acts: dict[int, Act]
    side: Path  # where the trainer says how far it came, on another disk
    each: bool = False  # whether each step is saved, to its end


_plan = Plan({}, Path())


class Trainee(Trainer):
    """The real trainer, on a disk that changes its mind."""

    def train_step(self, step: int, batch: Augmented) -> None:
        if _plan.each or step in _plan.acts:
            self.save()
            self.saver.finish()
            self.saver.settle()
        if act := _plan.acts.get(step):
            dist.barrier()
            if self.world.rank == 0:
                act()
            dist.barrier()
        super().train_step(step, batch)

    def finished(self) -> Outcome:
        if self.world.rank == 0:
            _plan.side.write_text(str(self.state.step))
        return super().finished()


class Disks:
    """A campaign of runs on bad disks.  `problems` says what should not have been."""

    def __init__(self, data: Path, folder: Path) -> None:
        train.Trainer = Trainee  # type: ignore[misc]
        self.side, self.number, self.problems = folder / "side", 0, list[str]()
        _plan.side = self.side
        self.runs = Runs(data, folder / "runs", STEPS)
        self.steps = self.runs.steps
        known = self.runs.run("each-step")
        _plan.each = True
        self.runs.attempt(known, 1, ("--checkpoint.every_minutes", "1e-6", "--checkpoint.keep", "1000")).finish()
        _plan.each = False
        self.known = {step_of(p): load_checkpoint(p)[0] for p in find_checkpoints(known.checkpoints)}
        assert len(self.known) >= self.steps - 1, sorted(self.known)

    def run(self, name: str, acts: dict[int, Act], ranks: int, place: RunFolder, well: Act) -> tuple[str, Counter[str]]:
        """Trains on the bad disk, looks what is left, has the disk be `well`, and goes on to the end.

        Returns how the first attempt ended, and what came of its saves.
        """
        self.number += 1
        _plan.acts = acts
        attempt = self.runs.attempt(place, ranks)
        attempt.end(patience=120)
        _plan.acts = {}
        well()
        reached = int(self.side.read_text()) if self.side.exists() else 0
        self.side.unlink(missing_ok=True)
        found = [f"training ended at step {reached} of {self.steps}"] if reached < self.steps else []
        found += self._left(place)
        ended = "finished" if place.finished() else "not saved at the end"
        events = Counter(event["event"] for event in place.events())
        try:
            self.runs.attempt(place, ranks).finish()
            found += self.runs.differences(place)
        except EndedError as error:
            found.append(str(error))
        self.problems += [f"{name}: {problem}" for problem in found]
        return ended, events

    def _left(self, place: RunFolder) -> Iterator[str]:
        """What is wrong with the checkpoints that an attempt left."""
        safe = max((event["step"] for event in place.events() if event["event"] == "checkpoint"), default=0)
        steps = [step_of(path) for path in find_checkpoints(place.checkpoints)]
        if max(steps, default=0) < max(safe, BEGIN):
            yield f"step {max(safe, BEGIN)} was safe, and {steps} are left"
        for path in find_checkpoints(place.checkpoints):
            try:
                tensors, manifest = load_checkpoint(path)
            except DamagedCheckpointError as error:
                yield f"a damaged checkpoint has a final name: {error}"
                continue
            known = self.known.get(manifest["step"])
            if known is not None and not all(torch.equal(tensors[name], known[name]) for name in known):
                yield f"{path} loads, and is not what was saved"

    def refusals(self, layer: Layer, ranks: int, every: int, modes: tuple[str, ...]) -> dict[str, Any]:
        """Has each `every`-th call that writes fail in turn; figures."""
        place, calls = self.runs.run(f"clean-{ranks}"), 0
        self.run("no fault", {BEGIN: layer.count}, ranks, place, lambda: None)
        calls = layer.stop()[0]
        out: dict[str, Any] = {"calls": calls, "ranks": ranks, "runs": 0, "failed": {}}
        kinds, ends = Counter[str](), Counter[str]()
        for number in range(1, calls + 1, every):
            for mode in modes:
                error = ERRORS[(number + (mode == "from then on")) % len(ERRORS)]
                ended, hit = self._refusal(layer, ranks, number, error, mode)
                if not hit:
                    continue
                out["runs"] += 1
                kinds[f"{hit} {mode}"] += 1
                ends[f"{mode}: {ended}"] += 1
        return out | {"failed": dict(sorted(kinds.items())), "ended": dict(ends)}

    def _refusal(self, layer: Layer, ranks: int, number: int, error: int, mode: str) -> tuple[str, str]:
        last = number if mode == "once" else 1 << 40
        place = self.runs.run(f"refused-{self.number}")
        logs = self.side.with_name(f"{place.path.name}-logs")
        logs.mkdir()
        place.path.mkdir()
        place.logs.symlink_to(logs)  # what is said can be heard
        hit: list[tuple[int, int, str, str]] = []
        name = f"call {number} of {ranks} ranks, {errno.errorcode[error]}, {mode}"
        halved = error != errno.EIO and mode != "once"  # a half, and then the rest, is no failure
        acts: dict[int, Act] = {BEGIN: lambda: layer.fail(number, last, error, halved)}
        before = len(self.problems)
        ended, events = self.run(name, acts, ranks, place, lambda: hit.append(layer.stop()))
        _, hits, call, path = hit[0]
        file = path.removeprefix(str(place.path)).removeprefix("/") or "the run's folder"
        told = events["checkpoint failed"] + events["pruning failed"]
        said = (logs / "attempts.log").read_text()
        save = file.startswith("checkpoints") and call not in ("unlink", "rmdir")
        if hits and save and not told and not re.search("cannot be (saved|removed)", said):
            self.problems.append(f"{name}: {call} of {file} failed, and nobody was told")
        if len(self.problems) == before:
            shutil.rmtree(place.path)
        return ended, f"{call} of {_kind(file)}" if hits else ""

    def full(self, ranks: int, levels: list[int]) -> dict[str, Any]:
        """Runs on a real file system that is full from a step on, but for so many bytes, for a while or to the end."""
        ends, runs = Counter[str](), 0
        for free in levels:
            for until in (BEGIN + 2, None):
                name = f"a disk with {free} bytes left, {'for two steps' if until else 'to the end'}"
                with small_disk(self.runs.folder / "disk") as disk:
                    if disk is None:
                        return {"skipped": "no file system can be mounted here, root alone may"}
                    fill = Ballast(disk, free)
                    acts = {BEGIN: fill.put} | ({until: fill.remove} if until else {})
                    ended, _ = self.run(name, acts, ranks, RunFolder(disk / "run"), fill.remove)
                runs += 1
                ends[f"{'for two steps' if until else 'to the end'}: {ended}"] += 1
        return {"runs": runs, "ended": dict(ends)}


class Ballast:
    """What fills a disk."""

    def __init__(self, disk: Path, free: int) -> None:
        self.file, self.free = disk / "ballast", free

    def put(self) -> None:
        """Leaves `free` bytes."""
        room = os.statvfs(self.file.parent)
        self.file.write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - self.free)))

    def remove(self) -> None:
        """Makes room."""
        self.file.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of its own, for a while; None where it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _kind(file: str) -> str:
    """Which of a run's files it is, without numbers."""
    if not file.startswith("checkpoints"):
        return file
    _, _, rest = file.partition("/")
    folder, _, name = rest.partition("/")
    return name.split("-")[0] if name else "a checkpoint's folder" if folder else "checkpoints"


def campaign(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Figures and problems."""
    disks, layer = Disks(data, folder), Layer()
    out: dict[str, Any] = {"full": disks.full(2, [40_000] if quick else list(range(0, 240_000, 16_000)))}
    print(json.dumps(out["full"]), flush=True)
    out["one_rank"] = disks.refusals(layer, 1, 66 if quick else 1, ("once", "from then on"))
    print(json.dumps(out["one_rank"]), flush=True)
    out["two_ranks"] = {} if quick else disks.refusals(layer, 2, 4, ("once", "from then on"))
    return out | {"problems": disks.problems}
