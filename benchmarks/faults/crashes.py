"""A power cut between any two file operations, replayed as in ALICE (Pillai et al., OSDI 2014) and CrashMonkey.

The file operations of all processes of a run are recorded in order.  For each point between two operations, the run
folder is written in all states in which a power cut may leave it (see simulated_disk.py).  The run must then resume
from an intact checkpoint, at least as new as the newest that it had reported as safe.  Its metrics and samples must be
complete up to this checkpoint.
"""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.faults.layer import Layer, Operation, operations
from benchmarks.faults.runs import Runs
from benchmarks.faults.simulated_disk import SimulatedDisk, Tree, write_tree
from vit.checkpoint.resume import newest_intact_checkpoint
from vit.config.schema import Config
from vit.distributed.world import join_process_group
from vit.kill_attempts import UnexpectedExitError
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.metrics import TIMING_KEYS, MetricsLog, SampleLog

STEPS = 8
MEMORY_FOLDER = Path("/dev/shm")  # because thousands of folders are written


class Replay:
    """Resumes a run from all states in which a power cut may leave it.  `problems` lists everything that went wrong."""

    def __init__(self, cfg: Config, operations: list[Operation], root: Path, folder: Path) -> None:
        self.cfg, self.operations, self.root, self.folder = cfg, operations, root, folder
        self.problems: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.saved: dict[int, Tree] = {}  # step -> files of its checkpoint when it got its final name
        self.curve: dict[int, dict[str, Any]] = {}
        self.samples: dict[tuple[int, int], Any] = {}
        self._seen: set[int] = set()  # hashes of the states so far
        self.states: list[tuple[int, Tree]] = []  # a selection, from which the run is really continued

    def run(self, finished: RunFolder, rng: random.Random, fraction: float = 1.0) -> dict[str, Any]:
        """Tries all states, or a random fraction of them; returns figures.  `finished` is the run after its end."""
        self.curve = {r["step"]: _without_timing(r) for r in read_lines(finished.metrics) if "loss" in r}
        self.samples = {(r["step"], r["shard"]): r for r in read_lines(finished.samples)}
        disk, safe = SimulatedDisk(), 0
        with join_process_group(self.cfg) as world:
            for number, operation in enumerate(self.operations):
                disk.apply(operation, str(self.root))
                safe = max(safe, reported_safe(operation))
                self._remember_checkpoint(disk, operation)
                for tree in disk.after_power_cut(rng):
                    if rng.random() < fraction:
                        self._try(world, number, tree, safe)
        return {
            "operations": len(self.operations),
            "calls": dict(Counter(operation.call for operation in self.operations)),
            "states": len(self._seen),
            "resumed": dict(self.outcomes),
            "problems": self.problems,
        }

    def _remember_checkpoint(self, disk: SimulatedDisk, operation: Operation) -> None:
        """Remembers the files of a checkpoint if this operation gives it its final name."""
        name = operation.other.rpartition("/")[2]
        if operation.call == "rename" and name.startswith("step-") and name[5:].isdigit():
            folder = f"checkpoints/{name}/"
            files = {path: disk.files[node].current for path, node in disk.current.items() if path.startswith(folder)}
            self.saved[int(name[5:])] = files

    def _try(self, world: Any, number: int, tree: Tree, safe: int) -> None:
        state = hash((safe, *sorted(tree.items())))
        if state in self._seen:
            return
        self._seen.add(state)
        write_tree(self.folder, tree)
        run = RunFolder(self.folder)
        where = f"after operation {number}, {self.operations[number].call} of {self.operations[number].path}"
        before = len(self.problems)
        try:
            found = newest_intact_checkpoint(run, world)
            step = found[2]["step"] if found else 0
            if step < safe:
                self.problems.append(f"{where}: step {safe} was safe, but {step} is the newest that is left")
            if found:
                self._check_files(where, found[0], tree)
            MetricsLog(run, self.cfg, step)
            SampleLog(run, step, 0)
            self._check_logs(where, run, step)
        except Exception as error:
            self.problems.append(f"{where}: the run does not resume: {type(error).__name__}: {error}")
        quarantined = any(path.name.count("damaged") for path in run.checkpoints.glob("*"))
        outcome = "the newest that was safe" if step == safe else "a newer one"
        self.outcomes["nothing was safe yet" if not safe and not step else outcome] += 1
        self.outcomes["damaged ones set aside"] += quarantined
        if len(self.problems) > before:
            return
        if len(self._seen) % 97 == 1:
            self.states.append((number, tree))

    def _check_files(self, where: str, path: Path, tree: Tree) -> None:
        """Checks that a checkpoint that loads is identical to the one that was saved."""
        folder = f"checkpoints/{path.name}/"
        files = {name: data for name, data in tree.items() if name.startswith(folder) and name != folder}
        if files != self.saved[int(path.name[5:])]:
            self.problems.append(f"{where}: {path.name} loads, but differs from what was saved")

    def _check_logs(self, where: str, run: RunFolder, step: int) -> None:
        """Checks that metrics and samples are complete up to `step` and end there."""
        curve = [_without_timing(record) for record in read_lines(run.metrics) if "loss" in record]
        if curve != [self.curve[s] for s in range(1, step + 1)]:
            steps = [record.get("step") for record in curve]
            self.problems.append(f"{where}: the metrics up to step {step} are those of steps {steps}")
        samples = {(r["step"], r["shard"]): r for r in read_lines(run.samples)}
        if samples != {key: r for key, r in self.samples.items() if key[0] <= step}:
            self.problems.append(f"{where}: the sample log up to step {step} differs from the samples that were used")


def reported_safe(operation: Operation) -> int:
    """The step that this operation reports as safe in the ledger; 0 for all other operations."""
    if operation.call != "write" or not operation.path.endswith("/ledger.jsonl"):
        return 0
    events = [json.loads(line) for line in operation.data.decode().splitlines() if line]
    return max((event["step"] for event in events if event["event"] == "checkpoint"), default=0)


def _without_timing(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMING_KEYS}


def record(runs: Runs, layer: Layer) -> tuple[RunFolder, list[Operation]]:
    """Runs on two ranks, is killed, and resumes on four; returns the run and its file operations in order."""
    run = runs.run("recorded")
    run.path.mkdir()
    logs = layer.log.with_name("logs")
    logs.mkdir(exist_ok=True)
    run.logs.symlink_to(logs)
    layer.record()
    attempt = runs.attempt(run, 2)
    while not (attempt.started() and max((r["step"] for r in read_lines(run.metrics)), default=0) > STEPS // 2):
        time.sleep(0.005)
    with layer.locked():  # so that no operation is done without being recorded
        victims = attempt.victims("everything", 0)
        attempt.send_sigkill(*victims)
    attempt.end()
    runs.attempt(run, 4).finish()
    layer.stop()
    recorded = [
        operation
        for operation in operations(layer.log)
        if f"{operation.path}/".startswith(f"{run.path}/") and f"{run.logs}/" not in operation.path
    ]
    return run, recorded


def campaign(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Records a run and replays power cuts in it; returns figures and problems."""
    runs = Runs(data, folder / "runs", STEPS)
    run, recorded = record(runs, Layer())
    print(f"{len(recorded)} operations", flush=True)
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None) as state:
        replay = Replay(runs.cfg, recorded, run.path, Path(state) / "run")
        out = replay.run(run, random.Random(0), fraction=0.01 if quick else 1.0)
    states = replay.states[:: max(1, len(replay.states) // (1 if quick else 40))]
    for number, tree in states:
        resumed = runs.run(f"resumed-{number}")
        write_tree(resumed.path, tree)
        try:
            runs.attempt(resumed, 2).finish()
            problems = runs.differences(resumed)
        except UnexpectedExitError as error:
            problems = [str(error)]
        replay.problems += [f"resumed after operation {number}: {problem}" for problem in problems]
        shutil.rmtree(resumed.path)
    return out | {"gone_on_with": len(states), "problems": replay.problems}
