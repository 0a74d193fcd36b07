"""SIGKILL at random times in training runs, mostly during a save; checks what the kill left on the disk."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.runs import KEEP, Runs
from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, step_of
from vit.checkpoint.load import load_checkpoint
from vit.kill_attempts import VICTIMS, Attempt, UnexpectedExitError, last_step
from vit.run.jsonl import read_lines

KILLS_PER_RUN, STEPS = 50, 60
WORLD_SIZES = (4, 1, 2, 1)  # of successive attempts, in a cycle
AT_START, IN_A_SAVE = 0.05, 0.85  # fractions of the kills that are aimed there; the others are at any time
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class KillResult:
    """A kill, and the state of the run after all processes of the attempt were gone."""

    victim: str
    ranks: int
    stage: str  # of the interrupted save, judging by the files on the disk; "" if there was none
    step: int  # last completed step
    safe: int  # step of the newest checkpoint that the run had reported as safe; 0: none
    intact: int  # step of the newest checkpoint that loads; 0: none

    @property
    def lost(self) -> int:
        """Completed steps that have to be repeated."""
        return max(0, self.step - self.intact)


class KilledRun:
    """One run that is killed repeatedly.  `problems` lists everything that went wrong."""

    def __init__(self, runs: Runs, name: str, rng: random.Random) -> None:
        self.runs, self.run, self.rng = runs, runs.run(name), rng
        self.problems: list[str] = []
        self._attempt: Attempt | None = None
        self._launched = 0  # number of attempts so far
        self._intact = 0  # step of the newest intact checkpoint after the last attempt
        self._started = False  # whether this attempt has started to train

    def kill_repeatedly(self, kills: int) -> Iterator[KillResult]:
        """Kills the run up to `kills` times, then finishes it and compares it with the reference, bit by bit."""
        try:
            for target in sorted(self.rng.choices(range(self.runs.steps - 3), k=kills)):
                result = self._kill(target)
                if result is None:
                    break
                yield result
            (self._attempt or self._launch()).finish()
            self._check_start()
            self.problems += self.runs.differences(self.run)
        except UnexpectedExitError as error:
            self.problems.append(str(error))
        finally:
            if self._attempt is not None:
                self._attempt.end(timeout=0)

    def _launch(self) -> Attempt:
        self._attempt = self.runs.attempt(self.run, WORLD_SIZES[self._launched % len(WORLD_SIZES)])
        self._launched, self._started = self._launched + 1, False
        return self._attempt

    def _kill(self, target: int) -> KillResult | None:
        """Waits for a step and a random time after it, and kills; None if the attempt ends before."""
        fresh, aim = self._attempt is None, self.rng.random()
        attempt = self._attempt or self._launch()
        if fresh and aim < AT_START:
            time.sleep(self.rng.uniform(0, 1.0))
            victim = self.rng.choice(VICTIMS)
        else:
            while attempt.running() and not (self._check_start() and last_step(self.run) >= target):
                time.sleep(0.01)
            victim = self.rng.choice((*VICTIMS, "a writer", "a writer"))
        if not attempt.running():
            return None
        self._check_start()
        try:
            victim, victims = attempt.victims(victim, self.rng.randrange(attempt.ranks))
        except psutil.NoSuchProcess:
            return None  # the attempt is just ending
        if aim < AT_START + IN_A_SAVE and self._started:
            self._wait_for_save(attempt)
        else:
            time.sleep(self.rng.uniform(0, 0.05))
        if not attempt.running():
            return None
        attempt.send_sigkill(victim, victims)
        if "writer" in victim:
            _wait_until_dead(victims)
            return self._result(victim, self._started)
        attempt.end()
        result = self._result(victim, self._check_start())
        self._attempt = None
        self._intact = result.intact
        if result.intact < result.safe:
            self.problems.append(f"step {result.safe} was safe, but {result.intact} is the newest that is left")
        return result

    def _check_start(self) -> bool:
        """Whether this attempt has started to train.  When it has, checks that it resumed from the right step."""
        if self._attempt is not None and not self._started and (started := self._attempt.started()):
            self._started = True
            if int(started["step"]) != self._intact:
                self.problems.append(f"resumed from step {started['step']:.0f}, though {self._intact} is intact")
        return self._started

    def _wait_for_save(self, attempt: Attempt) -> None:
        """Returns at a random time during a save, or after half a second if there is none."""
        saves = [event["seconds"] for event in self.run.events() if event["event"] == "checkpoint"]
        deadline = time.monotonic() + 0.5
        while attempt.running() and not any(self.run.checkpoints.glob("step-*.tmp")) and time.monotonic() < deadline:
            time.sleep(0.0003)
        time.sleep(self.rng.uniform(0, 0.7 * (saves[-1] if saves else 0.05)))

    def _result(self, victim: str, started: bool) -> KillResult:
        safe = max((e["step"] for e in self.run.events() if e["event"] == "checkpoint"), default=0)
        stage = self.stage() if started else ""
        intact = safe if "writer" in victim else self._newest_intact()
        ranks = WORLD_SIZES[(self._launched - 1) % len(WORLD_SIZES)]
        return KillResult(victim, ranks, stage, last_step(self.run), safe, intact)

    def _newest_intact(self) -> int:
        for path in find_checkpoints(self.run.checkpoints):
            try:
                return int(load_checkpoint(path)[1]["step"])
            except DamagedCheckpointError as error:
                self.problems.append(f"a kill damaged a checkpoint: {error}")
        return 0

    def stage(self) -> str:
        """The stage of the interrupted save, judging by the files on the disk; "" if there was none.

        Valid once the attempt has started to train: by then it has removed the partial saves of earlier attempts.
        """
        found = find_checkpoints(self.run.checkpoints)
        newest = step_of(found[0]) if found else 0
        for path in self.run.checkpoints.glob("step-*.tmp"):
            if int(path.name[5:13]) <= newest:
                return "an old one is half removed"
            return "the manifest is there" if (path / "manifest.json").exists() else "parts are being written"
        evaluated = {record["step"] for record in read_lines(self.run.metrics) if "val_top1" in record}
        # Old checkpoints that an earlier kill left do not count: there must be a newer one from this attempt.
        if newest > self._intact and any(step_of(path) not in evaluated for path in found[KEEP:]):
            return "named, old ones still there"
        return ""


def _wait_until_dead(processes: list[psutil.Process]) -> None:
    """Waits until killed processes are gone or zombies; only their parent can reap them."""
    deadline = time.monotonic() + TIMEOUT
    with suppress(psutil.NoSuchProcess):
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            assert time.monotonic() < deadline
            time.sleep(0.0003)


def campaign(data: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Makes `kills` kills, over as many runs as are needed; returns figures and problems."""
    rng, results = random.Random(seed), list[KillResult]()
    problems: list[str] = []
    runs, compared = Runs(data, folder, STEPS), 0
    for number in count(1):
        left = kills - len(results)
        if left <= 0:
            break
        killed = KilledRun(runs, f"run-{number}", rng)
        results.extend(killed.kill_repeatedly(min(left, KILLS_PER_RUN)))
        compared += 1
        problems += [f"run {number} of seed {seed}: {problem}" for problem in killed.problems]
        print(f"{len(results):>5} kills, {compared} runs compared, {len(problems)} problems", flush=True)
        if not killed.problems:
            shutil.rmtree(killed.run.path)
    ended = [result for result in results if "writer" not in result.victim]  # kills that ended an attempt
    return {
        "kills": len(results),
        "inside_a_save": sum(bool(result.stage) for result in results),
        "stages": dict(Counter(result.stage or "no save under way" for result in results)),
        "victims": dict(Counter(_kind(result.victim) for result in results)),
        "ranks": {str(n): sum(result.ranks == n for result in results) for n in sorted(set(WORLD_SIZES))},
        "steps_lost": sum(result.lost for result in ended),
        "most_steps_lost": max((result.lost for result in ended), default=0),
        "runs_compared": compared,
        "problems": problems,
        "each": [asdict(result) | {"lost": result.lost} for result in results],
    }


def _kind(victim: str) -> str:
    return "a writer" if "writer" in victim else "a rank" if victim.startswith("rank") else victim
