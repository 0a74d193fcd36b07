"""A submission in several sizes that fails or is killed at any point: all jobs are submitted and recorded, or none."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.node.candidates import candidates
from tests.helpers.faulty_submit import Effect, FaultySubmit, Outcome, install_slurm
from tests.helpers.local_runs import settings
from tests.helpers.paths import ROOT
from vit.run.folder import RunFolder

KILLED = -9
SIZES = ("--gpus", "1-4")
SWEEP = (*SIZES, "--sweep", "seed=0,1")


@dataclass(frozen=True)
class Case:
    """A folder for runs, and a stand-in for Slurm whose jobs stay in the queue."""

    process: FaultySubmit
    cwd: Path
    data: tuple[str, ...]

    def submit(self, *options: str, fault: tuple[int, Effect] | None = None) -> Outcome:
        self.install()
        environment = {"PATH": f"{self.cwd / 'slurm'}:/usr/bin:/bin"}
        arguments = ["--config", str(ROOT / "configs" / "demo.yaml"), "--cluster", "slurm", *self.data, *options]
        done = self.process.submit(arguments, self.cwd, self.cwd / "runs", environment, fault)
        assert "Traceback" not in done.printed, done.printed
        return done

    def install(self) -> None:
        """Writes the stand-in for Slurm."""
        if not self.cwd.exists():
            self.cwd.mkdir()
            install_slurm(self.cwd / "slurm", keeps_jobs=True)

    def queue(self) -> list[str]:
        """The jobs in the queue."""
        return sorted(path.name for path in (self.cwd / "slurm" / "queue").glob("*"))

    def held(self) -> list[str]:
        """Those that are held."""
        return sorted(path.name.removeprefix("held-") for path in (self.cwd / "slurm").glob("held-*"))

    def recorded(self) -> list[list[str]]:
        """The jobs that each run's only submission has recorded, with their sizes checked."""
        out = []
        for ledger in sorted((self.cwd / "runs").rglob("ledger.jsonl")):
            events = RunFolder(ledger.parent).events()
            names = [event["event"] for event in events]
            if names == ["estimated"]:  # the command was killed before it was submitted
                continue
            assert names == ["estimated", "submitted"]
            jobs = candidates(events)
            assert [(job.nodes, job.gpus) for job in jobs] == [(1, 1), (1, 2), (1, 4)]
            out.append([job.job for job in jobs])
        return out


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultySubmit]:
    """It copies a source of one file for each package."""
    checkout = tmp_path_factory.mktemp("checkout")
    for package in ("vit", "jobs", "data_prep"):
        (checkout / package).mkdir()
        (checkout / package / "new.py").write_text("new")
    process = FaultySubmit(checkout)
    yield process
    process.close()


@pytest.fixture
def cases(process: FaultySubmit, betons: Path, tmp_path: Path) -> Iterator[Case]:
    """New cases, each in its folder."""

    def make() -> Iterator[Case]:
        for i in range(1000):
            yield Case(process, tmp_path / str(i), (*settings(betons), "--device", "cpu"))
            shutil.rmtree(tmp_path / str(i), ignore_errors=True)

    return make()


def every(number: int) -> pytest.MarkDecorator:
    """Only every n-th change, and all of them in the campaign."""
    return pytest.mark.parametrize("every", [number, pytest.param(1, marks=pytest.mark.campaign)])


def changes(case: Case, *options: str) -> list[str]:
    """What the command changes if nothing fails."""
    done = case.submit(*options)
    assert done.code == 0, done.printed
    assert done.changes.count("sbatch") == 3 and done.changes.count("scontrol") == 1
    assert not case.held()
    return done.changes


@every(4)
def test_after_a_kill_no_job_is_left_unrecorded_or_submitted_twice(every: int, cases: Iterator[Case]) -> None:
    """SIGKILL before each change in turn, among them between the calls of sbatch and before the jobs are released.

    Until the next command nothing can start unless all jobs are recorded; afterwards the queue has the recorded jobs.
    """
    found = changes(next(cases), *SIZES)
    completed = []
    for i, change in list(enumerate(found))[every // 2 :: every]:
        case = next(cases)
        assert case.submit(*SIZES, fault=(i, "kill")).code == KILLED
        assert not case.queue() or case.held() == case.queue() or case.recorded(), change
        again = case.submit(*SIZES)
        assert case.recorded() == [case.queue()] and len(case.queue()) == 3, change
        assert not case.held(), change
        assert again.code in (0, 1), again.printed
        if again.code:
            assert "is already in the queue" in again.printed
            completed.append(i)
    assert completed and completed == [i for i in completed if i > found.index("sbatch")]


@every(4)
def test_a_change_that_fails_leaves_no_job_in_the_queue(every: int, cases: Iterator[Case]) -> None:
    """Or all of them are recorded, and only cleaning up has failed."""
    for i, change in list(enumerate(changes(next(cases), *SIZES)))[every // 2 :: every]:
        case = next(cases)
        done = case.submit(*SIZES, fault=(i, "fail once"))
        assert [case.queue()] == (case.recorded() or [[]]), (change, done.printed)
        assert (done.code == 0) == bool(case.queue()), change
        assert case.submit(*SIZES).code == (0 if done.code else 1)
        assert case.recorded() == [case.queue()] and not case.held()


@every(16)
def test_a_sweep_in_several_sizes_is_submitted_once_despite_a_kill(every: int, cases: Iterator[Case]) -> None:
    """An array for each size; the next command records what was submitted, or cancels it and submits it again."""
    found = changes(next(cases), *SWEEP)
    first_job = found.index("sbatch")
    for i, change in list(enumerate(found))[every // 2 :: every]:
        if i < first_job:
            continue
        case = next(cases)
        assert case.submit(*SWEEP, fault=(i, "kill")).code == KILLED
        assert case.submit(*SWEEP).code == 0
        runs = case.recorded()
        assert len(runs) == 2 and sorted(runs[0] + runs[1]) == case.queue(), change
        assert not case.held(), change


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_if_slurm_stops_responding_the_next_command_completes_the_submission_or_submits_again(
    jobs: int, cases: Iterator[Case]
) -> None:
    """After the first, the second or the last call of sbatch; meanwhile no job can start."""
    case = next(cases)
    case.install()
    responds = case.cwd / "slurm" / "responds"
    responds.write_text(str(jobs))
    failed = case.submit(*SIZES)
    assert failed.code == 1
    assert "run the same command again" in failed.printed
    assert case.held() == case.queue() and len(case.queue()) == jobs
    unreachable = case.submit(*SIZES)
    assert unreachable.code == 1 and "Slurm" in unreachable.printed
    responds.unlink()
    again = case.submit(*SIZES)
    assert case.recorded() == [case.queue()] and not case.held()
    assert case.queue() == (["101", "102", "103"] if jobs == 3 else [str(101 + jobs + i) for i in range(3)])
    assert again.code == (1 if jobs == 3 else 0)
