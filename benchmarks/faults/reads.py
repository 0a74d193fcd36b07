"""Disks that cannot be read: each call that reads a file of a run or of its data set fails, in every command.

A disk that cannot be read is no damage.  A command may give the right result all the same; otherwise it must end with
an error that names the file.  No checkpoint may be renamed or removed, no record of the learning curve or the ledger
may be lost, and the next start, on a disk that can be read again, must go on from the newest checkpoint to the bits of
the undisturbed run.

Only ENOENT may look like something else: a file that is gone.  A checkpoint without one of its files is damaged, so
an older one may be resumed.  But no run that has saved a step may begin again at step 0 by itself.
"""

import errno
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch._dynamo  # otherwise imported when an optimizer is created, which takes seconds
from PIL import Image

import vit.evaluate
import vit.export
import vit.predict
import vit.train  # noqa: F401  all of these are imported here once for all forks
from benchmarks.faults import readers
from benchmarks.faults.read_cases import (
    ABSENT,
    REFUSED,
    REPEATED,
    UNHARMED,
    Ended,
    Forks,
    Tally,
    Tree,
    command,
    read_tree,
)
from benchmarks.faults.read_checks import changed, left_behind, started, steps_in
from benchmarks.faults.read_layer import Call, Extent, Fault, ReadLayer, faults
from benchmarks.faults.runs import tiny_config
from benchmarks.faults.trainers import WRONG_TRAINERS, Restore, train_and_save
from jobs import report, status  # noqa: F401
from vit.checkpoint.format import find_checkpoints, step_of
from vit.config.schema import to_yaml
from vit.kill_attempts import Attempt
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.training.trainer import Trainer
from vit.verify import Artifact, artifacts, first_difference, passes_are_complete, shorten

QUICK = 4  # faults of each command and each reader with --quick
STEPS, INTERRUPTED = 4, 3  # steps of a run; the step after which the run to be resumed was killed
ROOT = Path(__file__).resolve().parents[2]
Action = Callable[[], object]


@dataclass(frozen=True)
class Command:
    """A command whose reads fail."""

    name: str  # for the table
    template: str  # the run folder that it starts with: "new", "interrupted" or "finished"
    action: Action
    trains: bool = False
    folder: str = ""  # only files in this folder fail: what the command does with others is tested elsewhere


class LogsElsewhere(RunFolder):
    """A run folder whose logs are on another disk, which can be read."""

    @property
    def logs(self) -> Path:
        return self.path.parents[1] / "logs"


class Reads:
    """Commands on disks that cannot be read.  `tally` counts the cases and the problems."""

    def __init__(self, data: Path, folder: Path) -> None:
        torch.set_num_threads(1)  # a thread pool would not survive the fork
        self.forks, self.tally = Forks(ReadLayer(), folder / "output"), Tally()
        self.templates, self.result = folder / "templates", folder / "result"
        self.root = folder / "runs"
        self.run = RunFolder(self.root / "run")
        shutil.copytree(data, self.root / "data", dirs_exist_ok=True)
        Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)).save(self.root / "image.png")
        self._continued: dict[str, list[str]] = {}  # problems of the next start, by the state that it started with
        self._expected: list[Artifact] = []
        self._make_templates()

    def _make_templates(self) -> None:
        """Writes the run folders that the commands start with."""
        cfg = shorten(tiny_config(self.root / "data"), STEPS)
        cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, keep=2))
        self.samples = cfg.data.limit
        self.run.path.mkdir(parents=True)
        self.run.config.write_text(to_yaml(cfg))
        shutil.copytree(self.run.path, self.templates / "new")

        def killed() -> None:
            Trainer.train_step = train_and_save(Trainer.train_step, INTERRUPTED)  # type: ignore[method-assign]
            self.train()()

        self._must_succeed(self.forks.run(killed), code=9)
        shutil.copytree(self.run.path, self.templates / "interrupted")
        self._must_succeed(self.forks.run(self.train()))
        shutil.copytree(self.run.path, self.templates / "finished")
        self._expected = artifacts(self.run)
        assert [step_of(path) for path in find_checkpoints(self.run.checkpoints)][:2] == [STEPS, INTERRUPTED]

    def _must_succeed(self, ended: Ended, code: int = 0) -> None:
        if ended.code != code:
            raise RuntimeError(f"without faults, a command ended with code {ended.code}:\n{ended.output}")

    def train(self, *options: str) -> Action:
        """`vit.train` on the run folder."""
        folder, config = str(self.run.path), str(self.run.config)
        return command("-m", "vit.train", "--config", config, "--run-dir", folder, *options)

    def train_on_ranks(self, ranks: int) -> Action:
        """The same on several ranks, which end when one of them fails."""
        arguments, run = ["--config", str(self.run.config)], LogsElsewhere(self.run.path)

        def train() -> None:
            attempt = Attempt(run, arguments, ranks, fresh=False)
            while attempt.running():
                time.sleep(0.005)
            attempt.end()
            print((run.logs / "attempts.log").read_text())
            sys.exit(attempt._code)

        return train

    def commands(self) -> list[Command]:
        """All commands that read a run folder."""
        run, image, result = str(self.run.path), str(self.root / "image.png"), str(self.result)
        stage = ("--data.stage", str(self.result.with_name("stage")))
        return [
            Command("start", "new", self.train(), trains=True),
            Command("start, staged data", "new", self.train(*stage), trains=True, folder="data"),
            Command("resume", "interrupted", self.train("--data.cache", "process"), trains=True),
            Command("resume on 2 ranks", "interrupted", self.train_on_ranks(2), trains=True, folder="run/checkpoints"),
            Command("start when finished", "finished", self.train("--data.cache", "memory"), trains=True),
            Command("export", "finished", command("-m", "vit.export", run, "--to", "safetensors", "--out", result)),
            Command("evaluate", "finished", command("-m", "vit.evaluate", run, "--which", "best", "--json")),
            Command("predict", "finished", command("-m", "vit.predict", run, image, "--json")),
            Command("status", "interrupted", command(str(ROOT / "jobs" / "status.py"), run, "--json")),
            Command("report", "interrupted", command(str(ROOT / "jobs" / "report.py"), run, "--out", f"{result}.png")),
        ]

    def restore(self, template: str) -> Tree:
        """Makes the run folder the one of a template, and removes the results of earlier commands."""
        elsewhere = (self.result.with_name(name) for name in ("stage", "logs", f"{self.result.name}.png"))
        for path in (self.run.path, self.result, *elsewhere):
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        shutil.copytree(self.templates / template, self.run.path)
        return read_tree(self.run.path)

    def record(self, tested: Command) -> tuple[list[Fault], str]:
        """All faults of a command, and its result without faults."""
        self.restore(tested.template)
        ended = self.forks.run(tested.action, record=True)
        self._must_succeed(ended)
        calls = [call for call in ended.calls if call.path.is_relative_to(self.root / tested.folder)]
        return list(faults(calls)), "" if tested.trains else self._result(ended)

    def case(self, tested: Command, fault: Fault, expected: str) -> None:
        """Runs a command with a fault, and checks what is left."""
        before = self.restore(tested.template)
        ended = self.forks.run(tested.action, fault)
        if not ended.calls:
            return  # threads and other processes do not always make as many calls
        problems = list(self._message_problems(ended))
        if tested.trains:
            outcome, more = self._check_training(before, ended, fault)
        else:
            outcome, more = self._check_reading(tested, before, ended, fault, expected)
        self.tally.add(tested.name, fault, self.run.path, outcome, problems + more)

    def _message_problems(self, ended: Ended) -> list[str]:
        last = ended.message.splitlines()[-1:] or ["no message"]
        if ended.code < 0:
            return [f"killed by signal {-ended.code}: {last[0]}"]
        if ended.code and not ended.names_a_file():
            return [f"the message names no file: {last[0]}"]
        if "Traceback" in ended.output and not ended.names_a_file():
            return [f"a traceback names no file: {last[0]}"]
        return []

    def notices_wrong_trainers(self) -> dict[str, list[str]]:
        """What the campaign reports about trainers that do what it must notice.  They are not counted."""
        out: dict[str, list[str]] = {}
        listing = Fault(Call("list", self.run.checkpoints), 1, errno.EIO, Extent.ONCE)
        for name, wrong in WRONG_TRAINERS.items():

            def train(wrong: Callable[[Restore], Restore] = wrong) -> None:
                Trainer.restore = wrong(Trainer.restore)  # type: ignore[method-assign]
                self.train()()

            before = self.restore("interrupted")
            ended = self.forks.run(train, listing)
            out[name] = self._check_training(before, ended, listing)[1]
        self._continued.clear()
        return out

    def _check_reading(
        self, tested: Command, before: Tree, ended: Ended, fault: Fault, expected: str
    ) -> tuple[str, list[str]]:
        """The outcome of a command that only reads, and the problems."""
        problems = [f"changed {path}" for path in changed(before, read_tree(self.run.path))]
        if ended.code:
            return REFUSED, problems
        if (result := self._result(ended)) == expected:
            return UNHARMED, problems
        if tested.name == "status" and ended.names_a_file():
            return REFUSED, problems  # it shows the other runs all the same
        if fault.error != errno.ENOENT or (tested.name not in ("status", "report") and not ended.names_a_file()):
            problems.append(f"exit code 0, but a wrong result: {result[:300]}")
        return ABSENT, problems

    def _result(self, ended: Ended) -> str:
        """What a command that only reads has printed and written."""
        if self.result.exists():
            with safetensors.safe_open(self.result, "pt") as file:
                tensors = {name: file.get_tensor(name).tolist() for name in sorted(file.keys())}
                return repr((sorted(file.metadata().items()), tensors))
        png = self.result.with_suffix(".png")
        written = png.read_bytes().hex() if png.exists() else ""
        lines = [line for line in ended.output.splitlines() if line.startswith("{")]
        records = [{k: v for k, v in json.loads(line).items() if k not in readers.AGES} for line in lines]
        return json.dumps(records) + written

    def _check_training(self, before: Tree, ended: Ended, fault: Fault) -> tuple[str, list[str]]:
        """The outcome of an attempt to train and of the next one, and the problems."""
        after = read_tree(self.run.path)
        begun = started(self.run, len((before.get("ledger.jsonl") or b"").splitlines()))
        repeated, problems = left_behind(before, after, begun, fault)
        if not ended.code:
            return REPEATED if repeated else UNHARMED, problems + self._differences()
        state = repr(sorted((name, data) for name, data in after.items() if not name.startswith("logs")))
        if state not in self._continued:
            newest = max(steps_in(after), default=0)
            events = len(read_lines(self.run.ledger))
            again = self.forks.run(self.train())
            self._continued[state] = [
                f"the next start began at step {step}, though {newest} is saved"
                for step in started(self.run, events)
                if step != newest
            ]
            if again.code:
                last = again.message.splitlines()[-1:]
                self._continued[state].append(f"the next start ended with code {again.code}: {last}")
            else:
                self._continued[state] += self._differences()
        return REPEATED if repeated else REFUSED, problems + self._continued[state]

    def _differences(self) -> list[str]:
        """The differences of the finished run to the undisturbed one, bit by bit."""
        if self.run.finished() is None:
            return ["the run is not finished"]
        pairs = zip(self._expected, artifacts(self.run), strict=True)
        out = [f"{a.name}: {difference}" for a, b in pairs if (difference := first_difference(a, b))]
        return out if passes_are_complete(self.run, self.samples) else [*out, "a pass is not complete"]


def campaign(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Breaks the reads of all commands, and of the readers in each Python here; returns figures and problems.

    With `quick`, only a random choice of them, and the readers only in this Python.
    """
    reads, rng = Reads(data, folder), random.Random(0)
    out: dict[str, Any] = {"noticed": reads.notices_wrong_trainers()}
    for tested in reads.commands():
        found, expected = reads.record(tested)
        for fault in rng.sample(found, min(len(found), QUICK)) if quick else found:
            reads.case(tested, fault, expected)
        print(f"{tested.name}: {len(found)} faults, {len(reads.tally.problems)} problems so far", flush=True)
    out |= reads.tally.figures()
    out["problems"] += [f"a trainer that {name} was not noticed" for name, found in out["noticed"].items() if not found]
    for version, python in list(readers.interpreters().items())[: 1 if quick else None]:
        found_there = readers.run_in(python, folder / f"python{version}", QUICK if quick else 0)
        out["cases"] += found_there["cases"]
        out["table"] += found_there["table"]
        out["problems"] += [f"Python {version}: {problem}" for problem in found_there["problems"]]
        print(f"readers in Python {version}: {len(found_there['problems'])} problems", flush=True)
    return out
