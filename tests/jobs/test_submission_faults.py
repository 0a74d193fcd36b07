"""A submission that fails or is killed at any point: config, source and ledger are replaced together, or not at all."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.helpers.faulty_submit import Effect, FaultySubmit, Outcome, install_slurm
from tests.helpers.local_runs import settings
from tests.helpers.paths import ROOT
from vit.config.parser import load_config
from vit.run.folder import RunFolder

KILLED = -9
UUID = "[0-9a-f]{32}"
EXTEND = ("--extend", "24")


@dataclass(frozen=True)
class Case:
    """A run folder, and the command that submits it to a stand-in for Slurm."""

    process: FaultySubmit
    cwd: Path
    environment: dict[str, str]
    options: tuple[str, ...]

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.cwd / "runs" / "demo")

    @property
    def runs(self) -> list[RunFolder]:
        """All runs: several after a sweep."""
        return [RunFolder(path.parent) for path in sorted((self.cwd / "runs").rglob("ledger.jsonl"))]

    def submit(self, *options: str, fault: tuple[int, Effect] | None = None) -> Outcome:
        arguments = ["--config", str(ROOT / "configs" / "demo.yaml"), "--cluster", "slurm", *self.options, *options]
        done = self.process.submit(arguments, self.cwd, self.cwd / "runs", self.environment, fault)
        assert "Traceback" not in done.printed
        assert done.code in {0, 1, 2, KILLED}, done.printed
        return done

    def copy(self, cwd: Path) -> "Case":
        """The same case in another folder; its config and ledger do not name the folder."""
        shutil.copytree(self.cwd, cwd, symlinks=True)
        path = self.environment["PATH"].replace(str(self.cwd), str(cwd))
        return replace(self, cwd=cwd, environment={"PATH": path})

    def state(self) -> dict[str, bytes]:
        """The contents of all files that a submission may change."""
        ignored = {"owner", "submitter"}
        files = [path for path in sorted((self.cwd / "runs").rglob("*")) if path.is_file() or path.is_symlink()]
        return {
            str(path.relative_to(self.cwd)): path.read_bytes()
            for path in files
            if path.name not in ignored and ".submission" not in path.parts
        }

    def is_replaced(self) -> bool:
        """Whether all of a run's files are those of an extended run; asserts that not only some of them are."""
        events = [event["event"] for event in self.run.events()][-2:]
        replaced = {
            load_config(self.run.config).epochs == 24,
            (self.run.source / "vit" / "new.py").exists(),
            not (self.run.source / "vit" / "old.py").exists(),
            (self.run.path / "environment.txt").read_text() != "old",
            events == ["reopened", "submitted"],
        }
        assert len(replaced) == 1, (events, sorted(self.state()))
        return replaced.pop()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for each package."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("vit", "jobs", "data_prep"):
        (folder / package).mkdir()
        (folder / package / "new.py").write_text("new")
    return folder


@pytest.fixture(scope="module")
def process(checkout: Path) -> Iterator[FaultySubmit]:
    process = FaultySubmit(checkout)
    yield process
    process.close()


@pytest.fixture
def new(process: FaultySubmit, betons: Path, tmp_path: Path) -> Case:
    """A run that was never submitted."""
    cwd = tmp_path / "new"
    cwd.mkdir()
    return Case(process, cwd, install_slurm(cwd / "slurm"), (*settings(betons), "--device", "cpu"))


@pytest.fixture
def finished(new: Case, tmp_path: Path) -> Case:
    """A run that has finished, and whose files are old."""
    case = new.copy(tmp_path / "finished")
    assert case.submit().code == 0
    for event in ("started", "finished"):
        case.run.record(event, step=48, val_top1=0.5, val_top5=0.9)
    (case.run.source / "vit" / "new.py").rename(case.run.source / "vit" / "old.py")
    (case.run.path / "environment.txt").write_text("old")
    return case


def changes(case: Case, every: int, cwd: Path, *options: str) -> list[tuple[int, str]]:
    """What the command changes, one after the other; of the changes only every n-th."""
    done = case.copy(cwd).submit(*options)
    assert done.code == 0
    assert len(done.changes) > 20
    return list(enumerate(done.changes))[every // 2 :: every]


def every(number: int) -> pytest.MarkDecorator:
    """Only every n-th change, and all of them in the campaign."""
    return pytest.mark.parametrize("every", [number, pytest.param(1, marks=pytest.mark.campaign)])


@every(3)
def test_a_change_that_fails_leaves_everything_as_it_was(every: int, finished: Case, tmp_path: Path) -> None:
    """Each write, rename and call of sbatch in turn; or the submission is complete, if all that is left is to clean up.

    The command prints one line, after its remark about the few steps of this run.
    """
    before = finished.state()
    for i, change in changes(finished, every, tmp_path / "undisturbed", *EXTEND):
        case = finished.copy(tmp_path / f"fail-{i}")
        done = case.submit(*EXTEND, fault=(i, "fail once"))
        if done.code:
            assert re.sub(UUID, UUID, change.rpartition(" ")[2]) in re.sub(UUID, UUID, done.printed)
            lines = [line for line in done.printed.splitlines() if not line.startswith("few steps: ")]
            assert len(lines) == 1, done.printed
            assert case.state() == before, change
            calls = (case.cwd / "slurm" / "calls").read_text().split()
            assert calls.count("scancel") == (calls.count("sbatch") == 2 and "submission_file" not in change), change
        else:
            assert case.is_replaced(), change
        shutil.rmtree(case.cwd)


@every(3)
def test_after_a_kill_everything_has_changed_or_nothing(every: int, finished: Case, tmp_path: Path) -> None:
    """SIGKILL before each change in turn; then the original command works, or the run is extended and submitted."""
    before = finished.state()
    taken_back = []
    for i, change in changes(finished, every, tmp_path / "undisturbed", *EXTEND):
        case = finished.copy(tmp_path / f"kill-{i}")
        assert case.submit(*EXTEND, fault=(i, "kill")).code == KILLED
        original = case.submit()
        if original.code == 0:
            assert "is complete" in original.printed
            assert case.state() == before, change
            taken_back.append(i)
        else:
            assert "epochs: 24 in the run, 6 now" in original.printed, change
            assert case.is_replaced(), change
            assert case.submit(*EXTEND).code == 0
        shutil.rmtree(case.cwd)
    assert taken_back[-1] > 20, "the files of a run are put back until its job is submitted"
    assert taken_back == [i for i, _ in changes(finished, every, tmp_path / "again", *EXTEND) if i <= taken_back[-1]]


@every(10)
def test_a_disk_that_fails_until_the_end_of_the_command_leaves_nothing_that_the_next_one_does_not_undo(
    every: int, finished: Case, tmp_path: Path
) -> None:
    """The files cannot be put back at once."""
    before = finished.state()
    for i, _ in changes(finished, every, tmp_path / "undisturbed", *EXTEND):
        case = finished.copy(tmp_path / f"disk-{i}")
        failed = case.submit(*EXTEND, fault=(i, "fail from then on"))
        original = case.submit()
        if original.code == 0:
            assert failed.code != 0
            assert case.state() == before
        else:
            assert case.is_replaced()
        shutil.rmtree(case.cwd)


@every(8)
def test_a_new_run_can_be_submitted_after_a_kill_at_any_point(every: int, new: Case, tmp_path: Path) -> None:
    """With other settings too, unless it was submitted; and --restart uses its folder."""
    for i, _ in changes(new, every, tmp_path / "undisturbed"):
        case = new.copy(tmp_path / f"kill-{i}")
        assert case.submit(fault=(i, "kill")).code == KILLED
        done = case.submit("--optim.lr", "0.1")
        if done.code:
            assert "optim.lr: 0.003 in the run, 0.1 now" in done.printed
            assert [event["event"] for event in case.run.events()] == ["estimated", "submitted"]
        else:
            assert load_config(case.run.config).optim.lr == 0.1
        shutil.rmtree(case.cwd)


def set_modes(folder: Path, file_mode: int, folder_mode: int) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(folder_mode if path.is_dir() else file_mode)


def test_a_read_only_installation_can_submit_a_run_again(new: Case, checkout: Path) -> None:
    """Also a run of an older version, whose copy of the source has the modes of the installation.

    As root, setpriv drops the capabilities that ignore permissions.
    """
    prefix = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all") if os.geteuid() == 0 else ()
    process = FaultySubmit(checkout, prefix)
    case = replace(new, process=process)
    set_modes(checkout, 0o444, 0o555)
    try:
        assert case.submit().code == 0
        assert case.submit().code == 0
        set_modes(case.run.source, 0o444, 0o555)
        done = case.submit(*EXTEND)
        assert done.code == 0, done.printed
        assert [event["event"] for event in case.run.events()] == ["estimated", "submitted"] * 3
        assert not (case.run.path / ".submission").exists()
    finally:
        set_modes(checkout, 0o644, 0o755)
        process.close()


@pytest.mark.parametrize("options", [(), EXTEND])
def test_a_job_that_slurm_rejects_leaves_everything_as_it_was(
    options: tuple[str, ...], new: Case, finished: Case
) -> None:
    """A new run, and one that would have been extended."""
    case = finished if options else new
    before = case.state()
    (case.cwd / "slurm" / "reject").touch()
    rejected = case.submit(*options)
    assert rejected.code == 1
    assert "Slurm says Invalid account" in rejected.printed
    assert case.state() == before
    (case.cwd / "slurm" / "reject").unlink()
    assert case.submit(*options, "--restart" if not options else "--gpus=1").code == 0
    assert not (case.cwd / "runs" / "demo-2").exists()


@every(10)
def test_a_sweep_is_submitted_as_a_whole_or_not_at_all(every: int, new: Case, tmp_path: Path) -> None:
    """Each change of a file fails in turn: either no run has a config, or all have one and a job."""
    sweep = ("--sweep", "seed=0,1")
    for i, _ in changes(new, every, tmp_path / "undisturbed", *sweep):
        case = new.copy(tmp_path / f"sweep-{i}")
        code = case.submit(*sweep, fault=(i, "fail once")).code
        configs = list((case.cwd / "runs").rglob("config.yaml"))
        jobs = [event["job"] for run in case.runs for event in run.events() if event["event"] == "submitted"]
        assert (len(configs), jobs) == ((0, []) if code else (2, ["101_0", "101_1"]))
        assert case.submit(*sweep).code == 0
        shutil.rmtree(case.cwd)
