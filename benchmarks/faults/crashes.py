"""A power cut between any two file operations, as ALICE (Pillai et al., OSDI 2014) and CrashMonkey replay it.

A real run's operations are written down, of all its processes in their order.  At each point between two of them the
folder is built as a disk may hold it that promises no more than POSIX does: bytes are there once their file is synced,
and names once their folder is.  What is not synced yet may be there or not, each change by itself.  The run must then
go on from a whole checkpoint, as new as the newest that it had called safe, with its curve and samples up to there.
"""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.faults.layer import Layer, Operation, operations
from benchmarks.faults.runs import Runs
from vit.checkpoint.resume import newest_whole_checkpoint
from vit.config.schema import Config
from vit.distributed.world import join
from vit.kill_attempts import EndedError
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.metrics import TIMED, MetricsLog, SampleLog

STEPS = 8
MEMORY = Path("/dev/shm")  # thousands of folders are written
FEW = 5  # changes of names that are not synced: of so many each choice is tried
TORN = ("kept", "gone", "short", "zeros")  # what becomes of bytes that are not synced
Tree = dict[str, bytes]  # the files of a run folder


@dataclass
class File:
    """A file: its bytes as they are, and those that are synced."""

    now: bytes = b""
    synced: bytes = b""

    def torn(self, how: str) -> bytes:
        """What a power cut leaves of it."""
        if how == "kept" or self.now == self.synced:
            return self.now
        if how == "gone":
            return self.synced
        shared = next((i for i, (a, b) in enumerate(zip(self.now, self.synced, strict=False)) if a != b), None)
        shared = min(len(self.now), len(self.synced)) if shared is None else shared
        kept = shared + (len(self.now) - shared) // 2
        return self.now[:kept] if how == "short" else self.now[:shared] + bytes(len(self.now) - shared)


@dataclass
class Change:
    """One change of names, in a folder that is not synced since."""

    folder: int
    name: str  # what appears or goes
    node: int | None  # what it is then; None: nothing
    gone: str | None = None  # the name that goes, as another appears


@dataclass
class Disk:
    """Files and folders by numbers of their own, names as they are and as they are synced."""

    files: dict[int, File] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})  # as a power cut leaves them at least
    changes: list[Change] = field(default_factory=list)  # that it may leave or not, in their order
    now: dict[str, int] = field(default_factory=lambda: {"": 0})  # the whole paths
    inodes: dict[int, int] = field(default_factory=dict)
    made: int = 0

    def do(self, operation: Operation, root: str) -> None:
        """One operation of a process."""
        path = operation.path.removeprefix(root).strip("/").removesuffix(" (deleted)")
        match operation.call:
            case "create" | "mkdir":
                self.made += 1
                self.now[path] = self.inodes[operation.inode] = self.made
                if operation.call == "create":
                    self.files[self.made] = File()
                else:
                    self.folders[self.made] = {}
                self._change(path, self.made)
            case "write":
                file = self.files[self.inodes[operation.inode]]
                end = operation.offset + len(operation.data)
                file.now = file.now[: operation.offset] + operation.data + file.now[end:]
            case "cut":
                file = self.files[self.inodes[operation.inode]]
                file.now = file.now[: operation.offset]
            case "fsync":
                self._sync(self.now[path] if path in self.now else self.inodes[operation.inode])
            case "remove":
                del self.now[path]
                self._change(path, None)
            case "rename":
                other = operation.other.removeprefix(root).strip("/")
                node = self.now[path]
                inside = {p: n for p, n in self.now.items() if p == path or p.startswith(f"{path}/")}
                self.now = {p: n for p, n in self.now.items() if p not in inside}
                self.now |= {other + p.removeprefix(path): n for p, n in inside.items()}
                self._change(other, node, path.rpartition("/")[2])
            case _:
                raise AssertionError(operation.call)

    def _change(self, path: str, node: int | None, gone: str | None = None) -> None:
        folder, _, name = path.rpartition("/")
        self.changes.append(Change(self.now[folder], name, node, gone))

    def _sync(self, node: int) -> None:
        if node in self.files:
            self.files[node].synced = self.files[node].now
            return
        for change in self.changes:
            if change.folder == node:
                _apply(self.folders, change)
        self.changes = [change for change in self.changes if change.folder != node]
        there = {0, *(n for names in self.folders.values() for n in names.values()), *(c.node for c in self.changes)}
        self.folders = {n: names for n, names in self.folders.items() if n in there}
        self.changes = [change for change in self.changes if change.folder in self.folders]  # others are gone for good

    def after_a_cut(self, chance: random.Random) -> Iterator[Tree]:
        """What may be left: choices of the changes that reached the disk, and of what became of the bytes."""
        count = len(self.changes)
        choices: set[tuple[int, ...]] = {tuple(range(n)) for n in range(count + 1)}
        if count <= FEW:
            choices |= {chosen for n in range(count + 1) for chosen in combinations(range(count), n)}
        else:
            everything = range(count)
            choices |= {tuple(i for i in everything if i != left) for left in everything} | {(i,) for i in everything}
            choices |= {tuple(i for i in everything if chance.random() < 0.5) for _ in range(16)}
        for chosen in sorted(choices):
            folders = {node: dict(names) for node, names in self.folders.items()}
            for i in chosen:
                _apply(folders, self.changes[i])
            for how in TORN:
                yield dict(self._tree(folders, 0, "", how))

    def _tree(self, folders: dict[int, dict[str, int]], node: int, at: str, how: str) -> Iterator[tuple[str, bytes]]:
        for name, child in folders[node].items():
            if child in self.files:
                yield at + name, self.files[child].torn(how)
            else:
                yield f"{at}{name}/", b""
                yield from self._tree(folders, child, f"{at}{name}/", how)


def _apply(folders: dict[int, dict[str, int]], change: Change) -> None:
    names = folders[change.folder]
    if change.gone is not None:
        names.pop(change.gone, None)
    if change.node is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.node


class Replay:
    """All states that a power cut may leave of a run, and what becomes of them.  `problems`: what should not be."""

    def __init__(self, cfg: Config, operations: list[Operation], root: Path, folder: Path) -> None:
        self.cfg, self.operations, self.root, self.folder = cfg, operations, root, folder
        self.problems: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.known: dict[int, Tree] = {}  # checkpoints as they were when they got their name
        self.curve: dict[int, dict[str, Any]] = {}
        self.samples: dict[tuple[int, int], Any] = {}
        self._seen: set[int] = set()
        self.states: list[tuple[int, Tree]] = []  # to be gone on with for real

    def run(self, whole: RunFolder, chance: random.Random, sample: float = 1.0) -> dict[str, Any]:
        """Tries all states, or a random `sample` of them; figures.  `whole` is the run as it ended."""
        self.curve = {r["step"]: _bare(r) for r in read_lines(whole.metrics) if "loss" in r}
        self.samples = {(r["step"], r["shard"]): r for r in read_lines(whole.samples)}
        disk, safe = Disk(), 0
        with join(self.cfg) as world:
            for number, operation in enumerate(self.operations):
                disk.do(operation, str(self.root))
                safe = max(safe, told_safe(operation))
                self._remember(disk, operation)
                for tree in disk.after_a_cut(chance):
                    if chance.random() < sample:
                        self._try(world, number, tree, safe)
        return {
            "operations": len(self.operations),
            "calls": dict(Counter(operation.call for operation in self.operations)),
            "states": len(self._seen),
            "resumed": dict(self.kinds),
            "problems": self.problems,
        }

    def _remember(self, disk: Disk, operation: Operation) -> None:
        """The bytes of a checkpoint that has just got its name."""
        name = operation.other.rpartition("/")[2]
        if operation.call == "rename" and name.startswith("step-") and name[5:].isdigit():
            at = f"checkpoints/{name}/"
            files = {path: disk.files[node].now for path, node in disk.now.items() if path.startswith(at)}
            self.known[int(name[5:])] = files

    def _try(self, world: Any, number: int, tree: Tree, safe: int) -> None:
        state = hash((safe, *sorted(tree.items())))
        if state in self._seen:
            return
        self._seen.add(state)
        build(self.folder, tree)
        run = RunFolder(self.folder)
        where = f"after operation {number}, {self.operations[number].call} of {self.operations[number].path}"
        before = len(self.problems)
        try:
            found = newest_whole_checkpoint(run, world)
            step = found[2]["step"] if found else 0
            if step < safe:
                self.problems.append(f"{where}: step {safe} was safe, {step} is what is left")
            if found:
                self._compare(where, found[0], tree)
            MetricsLog(run, self.cfg, step)
            SampleLog(run, self.cfg, step, 0)
            self._logs(where, run, step)
        except Exception as error:
            self.problems.append(f"{where}: it does not resume: {type(error).__name__}: {error}")
        aside = any(path.name.count("damaged") for path in run.checkpoints.glob("*"))
        kind = "the newest that was safe" if step == safe else "a newer one"
        self.kinds[("nothing was safe yet" if not safe and not step else kind)] += 1
        self.kinds["damaged ones set aside"] += aside
        if len(self.problems) > before:
            return
        if len(self._seen) % 97 == 1:
            self.states.append((number, tree))

    def _compare(self, where: str, path: Path, tree: Tree) -> None:
        """What passes for whole is what was saved, to the byte."""
        at = f"checkpoints/{path.name}/"
        files = {name: data for name, data in tree.items() if name.startswith(at) and name != at}
        if files != self.known[int(path.name[5:])]:
            self.problems.append(f"{where}: {path.name} passes, and is not what was saved")

    def _logs(self, where: str, run: RunFolder, step: int) -> None:
        curve = [_bare(record) for record in read_lines(run.metrics) if "loss" in record]
        if curve != [self.curve[s] for s in range(1, step + 1)]:
            self.problems.append(f"{where}: the curve up to step {step} is {[r.get('step') for r in curve]}")
        samples = {(r["step"], r["shard"]): r for r in read_lines(run.samples)}
        if samples != {key: r for key, r in self.samples.items() if key[0] <= step}:
            self.problems.append(f"{where}: samples up to step {step} are not those that were used")


def told_safe(operation: Operation) -> int:
    """The step that a line of the ledger calls safe; 0 for any other operation."""
    if operation.call != "write" or not operation.path.endswith("/ledger.jsonl"):
        return 0
    events = [json.loads(line) for line in operation.data.decode().splitlines() if line]
    return max((event["step"] for event in events if event["event"] == "checkpoint"), default=0)


def _bare(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMED}


def build(folder: Path, tree: Tree) -> None:
    """Has a folder hold these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, data in tree.items():
        place = folder / path
        (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            place.write_bytes(data)


def record(runs: Runs, layer: Layer) -> tuple[RunFolder, list[Operation]]:
    """A run on two ranks that is killed and goes on on four, and all its file operations in their order."""
    run = runs.run("recorded")
    run.path.mkdir()
    logs = layer.log.with_name("logs")
    logs.mkdir(exist_ok=True)
    run.logs.symlink_to(logs)
    layer.record()
    attempt = runs.attempt(run, 2)
    while not (attempt.started() and max((r["step"] for r in read_lines(run.metrics)), default=0) > STEPS // 2):
        time.sleep(0.005)
    with layer.held():  # no operation is done and not written down
        victims = attempt.victims("everything", 0)
        attempt.strike(*victims)
    attempt.end()
    runs.attempt(run, 4).finish()
    layer.stop()
    logs_ = f"{run.logs}/"  # a link to elsewhere
    done = [o for o in operations(layer.log) if f"{o.path}/".startswith(f"{run.path}/") and logs_ not in o.path]
    return run, done


def campaign(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Figures and problems."""
    runs = Runs(data, folder / "runs", STEPS)
    run, done = record(runs, Layer())
    print(f"{len(done)} operations", flush=True)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as state:
        replay = Replay(runs.cfg, done, run.path, Path(state) / "run")
        out = replay.run(run, random.Random(0), sample=0.01 if quick else 1.0)
    states = replay.states[:: max(1, len(replay.states) // (1 if quick else 40))]
    for number, tree in states:
        again = runs.run(f"again-{number}")
        build(again.path, tree)
        try:
            runs.attempt(again, 2).finish()
            found = runs.differences(again)
        except EndedError as error:
            found = [str(error)]
        replay.problems += [f"after operation {number}, gone on with: {problem}" for problem in found]
        shutil.rmtree(again.path)
    return out | {"gone_on_with": len(states), "problems": replay.problems}
