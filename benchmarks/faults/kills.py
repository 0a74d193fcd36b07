"""SIGKILL at random instants of real runs: where in a save it struck, and what was left."""

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
from vit.kill_attempts import VICTIMS, Attempt, EndedError, last_step
from vit.run.jsonl import read_lines

KILLS_A_RUN, STEPS = 50, 60
WORLDS = (4, 1, 2, 1)  # ranks of each attempt in turn
AT_START, IN_A_SAVE = 0.05, 0.85  # shares of the kills that are aimed so; the rest strikes anywhere
PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Strike:
    """A kill, and what was found after it, when nothing of the attempt was left."""

    victim: str
    ranks: int
    stage: str  # of a save, as the disk shows it; "" if none was under way
    step: int  # the newest that was done
    safe: int  # the newest that the run had called safe; 0: none
    whole: int  # the newest checkpoint that loads; 0: none

    @property
    def lost(self) -> int:
        """Steps to be done again."""
        return max(0, self.step - self.whole)


class UnderFire:
    """One run that is killed again and again.  `problems` says what should not have been."""

    def __init__(self, runs: Runs, name: str, chance: random.Random) -> None:
        self.runs, self.run, self.chance = runs, runs.run(name), chance
        self.problems: list[str] = []
        self._attempt: Attempt | None = None
        self._launched, self._left = 0, 0  # attempts so far, and the step that the last one left whole
        self._seen = False  # whether it was seen where this attempt went on

    def strikes(self, kills: int) -> Iterator[Strike]:
        """Kills it so often, as far as it is not finished before; then finishes it and compares all bits."""
        try:
            for target in sorted(self.chance.choices(range(self.runs.steps - 3), k=kills)):
                strike = self._strike(target)
                if strike is None:
                    break
                yield strike
            (self._attempt or self._launch()).finish()
            self._look()
            self.problems += self.runs.differences(self.run)
        except EndedError as error:
            self.problems.append(str(error))
        finally:
            if self._attempt is not None:
                self._attempt.end(patience=0)

    def _launch(self) -> Attempt:
        self._attempt = self.runs.attempt(self.run, WORLDS[self._launched % len(WORLDS)])
        self._launched, self._seen = self._launched + 1, False
        return self._attempt

    def _strike(self, target: int) -> Strike | None:
        """Waits for a step and an instant, and kills; None if the run ends before."""
        fresh, aim = self._attempt is None, self.chance.random()
        attempt = self._attempt or self._launch()
        if fresh and aim < AT_START:
            time.sleep(self.chance.uniform(0, 1.0))
            victim = self.chance.choice(VICTIMS)
        else:
            while attempt.going() and not (self._look() and last_step(self.run) >= target):
                time.sleep(0.01)
            victim = self.chance.choice((*VICTIMS, "a writer", "a writer"))
        if not attempt.going():
            return None
        self._look()
        try:
            victim, victims = attempt.victims(victim, self.chance.randrange(attempt.ranks))
        except psutil.NoSuchProcess:
            return None  # it ends just now
        if aim < AT_START + IN_A_SAVE and self._seen:
            self._await_save(attempt)
        else:
            time.sleep(self.chance.uniform(0, 0.05))
        if not attempt.going():
            return None
        attempt.strike(victim, victims)
        if "writer" in victim:
            return self._found(victim, _gone(victims) and self._seen)
        attempt.end()
        strike = self._found(victim, self._look())
        self._attempt = None
        self._left = strike.whole
        if strike.whole < strike.safe:
            self.problems.append(f"step {strike.safe} was safe, {strike.whole} is the newest that is left")
        return strike

    def _look(self) -> bool:
        """Whether this attempt has started.  Once it has: did it go on where the one before left off?"""
        if self._attempt is not None and not self._seen and (started := self._attempt.started()):
            self._seen = True
            if int(started["step"]) != self._left:
                self.problems.append(f"resumed from step {started['step']:.0f}, though {self._left} is whole")
        return self._seen

    def _await_save(self, attempt: Attempt) -> None:
        """Returns at a random instant of a save."""
        saves = [event["seconds"] for event in self.run.events() if event["event"] == "checkpoint"]
        deadline = time.monotonic() + 0.5
        while attempt.going() and not any(self.run.checkpoints.glob("step-*.tmp")) and time.monotonic() < deadline:
            time.sleep(0.0003)
        time.sleep(self.chance.uniform(0, 0.7 * (saves[-1] if saves else 0.05)))

    def _found(self, victim: str, started: bool) -> Strike:
        safe = max((e["step"] for e in self.run.events() if e["event"] == "checkpoint"), default=0)
        stage = self.stage() if started else ""
        whole = safe if "writer" in victim else self._newest_whole()
        ranks = WORLDS[(self._launched - 1) % len(WORLDS)]
        return Strike(victim, ranks, stage, last_step(self.run), safe, whole)

    def _newest_whole(self) -> int:
        for path in find_checkpoints(self.run.checkpoints):
            try:
                return int(load_checkpoint(path)[1]["step"])
            except DamagedCheckpointError as error:
                self.problems.append(f"a kill has damaged a checkpoint: {error}")
        return 0

    def stage(self) -> str:
        """What of a save was half done, by what is on the disk, once an attempt has removed what others left behind."""
        found = find_checkpoints(self.run.checkpoints)
        newest = step_of(found[0]) if found else 0
        for path in self.run.checkpoints.glob("step-*.tmp"):
            if int(path.name[5:13]) <= newest:
                return "an old one is half removed"
            return "the manifest is there" if (path / "manifest.json").exists() else "parts are being written"
        evaluated = {record["step"] for record in read_lines(self.run.metrics) if "val_top1" in record}
        # Those that an earlier kill saved from removal do not count: a newer one must have got its name since.
        if newest > self._left and any(step_of(path) not in evaluated for path in found[KEEP:]):
            return "named, old ones still there"
        return ""


def _gone(processes: list[psutil.Process]) -> bool:
    """Waits until killed processes have ended; another process has to bury them."""
    deadline = time.monotonic() + PATIENCE
    with suppress(psutil.NoSuchProcess):
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            assert time.monotonic() < deadline
            time.sleep(0.0003)
    return True


def campaign(data: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """So many kills, over as many runs as it takes; figures and problems."""
    chance, strikes = random.Random(seed), list[Strike]()
    problems: list[str] = []
    runs, compared = Runs(data, folder, STEPS), 0
    for number in count(1):
        left = kills - len(strikes)
        if left <= 0:
            break
        fire = UnderFire(runs, f"run-{number}", chance)
        for strike in fire.strikes(min(left, KILLS_A_RUN)):
            strikes.append(strike)
        compared += 1
        problems += [f"run {number} of seed {seed}: {problem}" for problem in fire.problems]
        print(f"{len(strikes):>5} kills, {compared} runs compared, {len(problems)} problems", flush=True)
        if not fire.problems:
            shutil.rmtree(fire.run.path)
    ended = [strike for strike in strikes if "writer" not in strike.victim]
    return {
        "kills": len(strikes),
        "inside_a_save": sum(bool(strike.stage) for strike in strikes),
        "stages": dict(Counter(strike.stage or "no save under way" for strike in strikes)),
        "victims": dict(Counter(_kind(strike.victim) for strike in strikes)),
        "ranks": {str(n): sum(strike.ranks == n for strike in strikes) for n in sorted(set(WORLDS))},
        "steps_lost": sum(strike.lost for strike in ended),
        "most_steps_lost": max((strike.lost for strike in ended), default=0),
        "runs_compared": compared,
        "problems": problems,
        "each": [asdict(strike) | {"lost": strike.lost} for strike in strikes],
    }


def _kind(victim: str) -> str:
    return "a writer" if "writer" in victim else "a rank" if victim.startswith("rank") else victim
