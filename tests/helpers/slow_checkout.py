"""A copy of the source in which a step takes a time inversely proportional to the number of ranks, as on GPUs.

The machine of the tests has fewer cores than the ranks need: without that, four ranks would not be faster than one.
Each rank also appends a line to `RUN/steps.log` for each step, for an observer that relies on nothing else.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.login.run_files import PACKAGES
from tests.helpers.paths import ROOT

LOG = "steps.log"  # in the run folder
FILE, LINE = "vit/training/trainer.py", '        """Runs one optimizer step, or skips it."""\n'
# Written before and after the time of the step, in one write each, so that lines of several ranks do not mix.
SLOW = """        import os, time
        begun, rank, ranks = time.monotonic(), self.world.rank, self.world.size
        time.sleep({seconds} / ranks)
        start = f"{{os.environ.get('SLURM_JOB_ID')}}.{{os.environ.get('SLURM_RESTART_COUNT', 0)}}"
        with (self.run.path / "steps.log").open("ab", buffering=0) as log:
            log.write(f"{{start}} {{ranks}} {{rank}} {{step}} {{begun}} {{time.monotonic()}}\\n".encode())
"""


def slow_checkout(folder: Path, rank_seconds: float) -> Path:
    """Copies the source to a folder, with steps that take at least `rank_seconds` / ranks; returns the folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    file = folder / FILE
    source = file.read_text()
    assert source.count(LINE) == 1
    file.write_text(source.replace(LINE, LINE + SLOW.format(seconds=rank_seconds)))
    return folder


@dataclass(frozen=True)
class RankStep:
    """A step of one rank.  Times are of the machine's monotonic clock, which all processes share."""

    start: str  # of a job: its id and how often it was requeued
    ranks: int
    rank: int
    step: int
    begun: float
    ended: float


def rank_steps(run: Path) -> list[RankStep]:
    """The steps of all ranks so far, in the order in which they were logged."""
    log = run / LOG
    words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [RankStep(w[0], int(w[1]), int(w[2]), int(w[3]), float(w[4]), float(w[5])) for w in words if len(w) == 6]


def overlaps(steps: Sequence[RankStep]) -> list[str]:
    """Where ranks of two starts of jobs trained at the same time; empty if there was one owner at a time."""
    found = []
    current = None
    for step in sorted(steps, key=lambda step: step.begun):
        if current is not None and step.start != current.start and step.begun < current.ended:
            found.append(f"{current.start} and {step.start} at step {current.step} and {step.step}")
        if current is None or step.ended > current.ended:
            current = step
    return found


def returns(steps: Sequence[RankStep]) -> list[str]:
    """Starts of jobs that trained again after another one had trained; empty if each owned once, without a break."""
    found, seen, last = [], set[str](), ""
    for step in sorted(steps, key=lambda step: step.begun):
        if step.start != last:
            found += [step.start] if step.start in seen else []
            seen.add(step.start)
            last = step.start
    return found
