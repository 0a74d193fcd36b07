"""A run of several sizes on the test cluster, and an observer of who trains it that relies on nothing of the run's."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from jobs.node.candidates import Candidate, candidates, job_ids
from tests.helpers.background import in_background
from tests.helpers.cluster_case import Case
from tests.helpers.paths import ROOT
from tests.helpers.slow_checkout import overlaps, rank_steps

ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", ""}
SAMPLE_SECONDS = 0.3


@dataclass
class Observer:
    """Samples the process table: the starts of jobs whose ranks are alive."""

    case: "ElasticCase"
    found: list[str] = field(default_factory=list)  # moments at which ranks of two starts were alive
    owners: list[str] = field(default_factory=list)  # starts of jobs whose ranks were seen, in order

    @contextmanager
    def watching(self) -> Iterator["Observer"]:
        """Samples in a thread."""

        def sample(over: threading.Event) -> None:
            while not over.wait(SAMPLE_SECONDS):
                self.sample()

        with in_background(sample):
            yield self

    def sample(self) -> None:
        """Looks once.  Ranks of the first and of the second start must both be alive after both were seen."""
        alive: dict[str, list[psutil.Process]] = {}
        for rank in self.case.ranks_of_all():
            with suppress(psutil.Error):
                variables = rank.environ()
                start = f"{variables.get('SLURM_JOB_ID')}.{variables.get('SLURM_RESTART_COUNT', '0')}"
                alive.setdefault(start, []).append(rank)
        if len(alive) > 1:
            alive = {start: ranks for start, ranks in alive.items() if any(map(_is_alive, ranks))}
        if len(alive) > 1:
            self.found.append(f"ranks of {' and '.join(sorted(alive))} were alive at {time.time():.1f}")
        if len(alive) == 1 and self.owners[-1:] != [*alive]:
            self.owners += alive


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@dataclass(frozen=True)
class ElasticCase(Case):
    """A run with several sizes.  `job` is the id of the first candidate."""

    def with_source(self, checkout: Path) -> "ElasticCase":
        """The same, submitted by the submit.py of another copy of the source."""
        python, *words = self.command  # Python stays: it may be in an environment below the project's folder
        return replace(self, command=(python, *(word.replace(str(ROOT), str(checkout)) for word in words)))

    def candidates(self) -> list[Candidate]:
        """The jobs that were submitted, smallest first."""
        return sorted(candidates(self.run.events()), key=lambda each: each.ranks)

    def jobs(self) -> list[str]:
        """The ids of all jobs of the run; a single one if it was submitted in a fixed size."""
        return job_ids(self.run.events())

    def job_of(self, ranks: int) -> str:
        """The job of a size."""
        return next(each.job for each in self.candidates() if each.ranks == ranks)

    def states(self) -> dict[str, str]:
        """The state of each job."""
        return {job: self.slurm.state(job) for job in self.jobs()}

    def trains_on(self) -> int:
        """The number of ranks of the newest step; 0 before the first."""
        steps = rank_steps(self.run.path)
        return max(steps, key=lambda step: step.ended).ranks if steps else 0

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 400) -> None:
        """Waits for a condition.  Fails, with all that the jobs printed, at the timeout or if all have ended."""
        begun = checked = time.monotonic()
        while not condition():
            now, ended = time.monotonic(), False
            if now - checked > 3:
                states = set(self.states().values())
                checked, ended = time.monotonic(), bool(states) and states <= ENDED
                ended = ended and self.slurm.responds()
            if (now - begun > seconds or ended) and not condition():
                pytest.fail(f"{'all jobs have ended' if ended else 'timeout'}: waited for {what}\n{self.output()}")
            time.sleep(0.1)

    def finish(self, seconds: float = 400) -> None:
        """Waits until the run is complete and no job of it is left; checks that it had one owner at a time."""
        self.wait_until(self.run.finished, "the end of the run", seconds)
        self.wait_until(self.all_ended, "the end of all jobs", 120)
        assert not overlaps(rank_steps(self.run.path))

    def all_ended(self) -> bool:
        """Whether no candidate is pending or running."""
        return self.slurm.responds() and set(self.states().values()) <= ENDED

    def ranks_of_all(self) -> list[psutil.Process]:
        """The training processes of all jobs."""
        return self.processes("vit.train (rank")

    def output(self) -> str:
        """Ledger, logs, ownership files and the jobs' states, for the message of a test that fails."""
        owners = "\n".join(f"{f.name}: {f.read_text().strip()}" for f in sorted(self.run.path.glob("owners/*")))
        jobs = [self.slurm.call("scontrol", "-o", "show", "job", job, check=False)[:900] for job in self.jobs()]
        files = [self.run.ledger, *sorted(self.run.jobs.glob("*.out")), *sorted(self.run.jobs.glob("*.err"))]
        text = "\n".join(f"== {f.name}\n" + "\n".join(f.read_text().splitlines()[-60:]) for f in files if f.exists())
        return "\n".join(["== owners", owners, "== jobs", *jobs, text])
