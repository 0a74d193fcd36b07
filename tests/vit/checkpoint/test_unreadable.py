"""A run whose files cannot be read, or are gone, never begins again by itself, and keeps its learning curve."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import (
    Fault,
    assert_same_run,
    checkpoints,
    new_run_folder,
    run_attempt,
    save_each_step,
    short_config,
)
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import find_checkpoints, step_of
from vit.config.user_error import UserError
from vit.run.folder import RunFolder
from vit.train import Outcome


@pytest.fixture(scope="module")
def stopped_run(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before its last step, with several checkpoints."""
    run = new_run_folder(tmp_path_factory.mktemp("stopped") / "run")
    run_ranks(4, run_attempt, save_each_step(short_config(betons)), run, Fault(2, 1, signal.SIGTERM))
    assert len(checkpoints(run)) > 1
    return run


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped_run, tmp_path / "run")
    return tmp_path / "run"


def contents(run: Path) -> dict[str, int]:
    """The files of a run folder and their sizes, without its ledger, to which failures are appended."""
    ignored = {RunFolder(run).ledger, run / "owner"}
    return {str(p.relative_to(run)): p.lstat().st_size for p in run.rglob("*") if p.is_file() and p not in ignored}


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Makes a file or folder unreadable, also for root: a symbolic link to itself gives ELOOP."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    path.symlink_to(path.name)
    yield
    path.unlink()
    aside.rename(path)


@pytest.mark.parametrize("name", ["manifest.json", "part-000.bin", "part-003.bin", ""])
def test_a_checkpoint_that_cannot_be_read_is_left_alone(
    betons: Path, uninterrupted: Path, run: Path, name: str
) -> None:
    """The attempt fails and names the file; the next one, when it can be read again, ends with the same bits."""
    file, cfg, before = checkpoints(run)[0] / name, short_config(betons), contents(run)
    with unreadable(file), pytest.raises(OSError, match="may be intact") as error:
        run_ranks(4, run_attempt, cfg, run)
    assert str(file) in str(error.value)
    assert contents(run) == before
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same_run(run, uninterrupted)


def test_checkpoints_that_cannot_be_listed_are_not_a_new_run(betons: Path, run: Path) -> None:
    """The error names the folder, on all ranks."""
    folder, before = RunFolder(run).checkpoints, contents(run)
    with unreadable(folder), pytest.raises(OSError, match=f"'{folder}'"):
        run_ranks(4, run_attempt, short_config(betons), run)
    assert contents(run) == before


def test_a_folder_that_is_only_reported_missing_is_not_a_new_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale cache of a network file system may say ENOENT for a folder that its parent lists."""
    folder, listdir = RunFolder(run).checkpoints, os.listdir

    def stale(path: Path) -> list[str]:
        if path == folder:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(FileNotFoundError, match="checkpoints"):
        find_checkpoints(folder)
    assert find_checkpoints(run / "none") == []
    assert find_checkpoints(run / "none" / "none") == []


def remove_all(run: Path) -> None:
    """As a purge of a scratch file system does."""
    shutil.rmtree(RunFolder(run).checkpoints)


def remove_contents(run: Path) -> None:
    for path in checkpoints(run):
        shutil.rmtree(path)


def damage_all(run: Path) -> None:
    for path in checkpoints(run):
        (path / "part-001.bin").write_bytes(b"damaged")


@pytest.mark.parametrize("loss", [remove_all, remove_contents, damage_all])
def test_a_run_that_has_lost_its_checkpoints_does_not_begin_again(betons: Path, run: Path, loss: object) -> None:
    """It says what to do, and its learning curve is untouched."""
    assert callable(loss)
    curve = RunFolder(run).metrics.read_bytes()
    step = step_of(checkpoints(run)[0])
    loss(run)
    with pytest.raises(UserError, match=rf"has no intact .*, but step {step} .* was saved; .*submit\.py --restart"):
        run_ranks(4, run_attempt, short_config(betons), run)
    assert RunFolder(run).metrics.read_bytes() == curve


def test_what_is_repeated_is_set_aside(betons: Path, uninterrupted: Path, run: Path) -> None:
    """Without its newest checkpoint, the run repeats a step; the records of the first time are kept in another file."""
    newest = checkpoints(run)[0]
    shutil.rmtree(newest)
    lines = RunFolder(run).metrics.read_text().splitlines()
    assert run_ranks(4, run_attempt, short_config(betons), run) == [Outcome.FINISHED] * 4
    assert_same_run(run, uninterrupted)
    aside = (run / "metrics.superseded.jsonl").read_text().splitlines()
    assert aside
    assert set(aside) <= set(lines)
    assert f'{{"step": {step_of(newest)}, ' in aside[-1]
