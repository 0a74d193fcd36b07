"""The files of a run that a submission writes: config, source code and environment, replaced together or not at all.

The new files are written aside.  Then a journal is written, the files are exchanged, and the job is submitted.  If that
fails, the previous files are put back; if the command is killed, the next one puts them back, unless the job was
submitted.  The journal exists from just before the exchange until the submission is recorded in the ledger.
"""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jobs.login import held_jobs
from jobs.login.held_jobs import LeftInQueueError
from jobs.login.multi_cluster import named_cluster
from jobs.node.candidates import Candidate, job_ids
from vit.config.own_files import is_checkout
from vit.run.console import started_as
from vit.run.file_lock import lock
from vit.run.folder import RunFolder
from vit.run.fsync import replace_file

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vit", "jobs", "data_prep")
NOT_COPIED = {"__pycache__", "README.md"}
RECORDED = {"reopened", "estimated", "submitted", "accepted"}  # events of a submission
# Files that submitit writes before and after it calls sbatch.
SUBMITIT_FILES = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh|\d+_(submission\.sh|submitted\.pkl)")


@contextmanager
def replaced(runs: Sequence[RunFolder], configs: Sequence[str], on_slurm: bool, sizes: int = 1) -> Iterator[None]:
    """Replaces the files of runs whose folders this process owns; the body submits their jobs and records that.

    Each run is submitted in so many sizes.  If the body raises an exception, or a file cannot be written, everything is
    as before; but jobs that are recorded and only have to be released are left to the next command.
    """
    try:
        for run, config in zip(runs, configs, strict=True):
            recover(run)
            _write_aside(run, config)
        for i, run in enumerate(runs):
            _exchange(run, on_slurm, sizes, task=f"_{i}" if len(runs) > 1 else "")
        yield
    except LeftInQueueError:
        raise
    except BaseException:
        for run in runs:
            with suppress(OSError):  # the next command tries again
                _put_back(run)
        raise
    for run in runs:
        with suppress(OSError):  # the next command finds the recorded submission
            _finish(run)


def record_submission(run: RunFolder, jobs: Sequence[Candidate] = ()) -> None:
    """Records that a finished run has more to do, and its Slurm jobs.  Raises OSError if it cannot."""
    if run.finished():
        run.record("reopened")
    if jobs:
        several = {"candidates": [*map(asdict, jobs)]} if len(jobs) > 1 else {}
        cluster = {"cluster": name} if (name := named_cluster()) else {}
        run.record("submitted", job=jobs[0].job, **several, **cluster)
    recorded = run.last("submitted")
    if run.finished() or (jobs and (recorded is None or recorded["job"] != jobs[0].job)):  # the line is only in memory
        raise OSError(f"{run.ledger} cannot be written; the disk may be full or failing")


def is_interrupted(run: RunFolder) -> bool:
    """Whether a command was killed while it submitted the run, or another one is just submitting it."""
    return _journal(run).exists()


def recover(run: RunFolder) -> None:
    """Completes or takes back the submission of a command that was killed.  This process must own the folder."""
    if not is_interrupted(run):
        _finish(run)
        return
    journal = json.loads(_journal(run).read_text())
    new = {path.name for path in run.jobs.glob(f"*{journal['task']}_submitted.pkl")} - set(journal["job_files"])
    sizes = journal.get("sizes", 1)
    recorded = set(_recorded_since(run, journal["ledger_bytes"]))
    if len(new) < sizes and not (sizes > 1 and "submitted" in recorded):
        if journal["on_slurm"]:
            held_jobs.cancel(held_jobs.unrecorded_jobs(run.jobs, journal["job_files"], run.source, journal["task"]))
        _put_back(run)
        return
    if not {"submitted", "finished"} & recorded:
        found = [_candidate(run.jobs / name) for name in new] if journal["on_slurm"] else []
        record_submission(run, sorted(found, key=lambda each: (each.ranks, each.job)))
    if sizes > 1:
        held_jobs.release(job_ids(run.events()))
    _finish(run)


def _candidate(pickled: Path) -> Candidate:
    """The job that submitit has pickled, with the size that it was submitted for."""
    from submitit.core.utils import DelayedSubmission  # not at the top: it takes time, and is rarely needed

    job, number = DelayedSubmission.load(pickled).function, pickled.name.removesuffix("_submitted.pkl")
    return Candidate(number, getattr(job, "nodes", 1), getattr(job, "gpus", 0), getattr(job, "gpu_type", ""))


def _folder(run: RunFolder) -> Path:
    return run.path / ".submission"


def _journal(run: RunFolder) -> Path:
    return _folder(run) / "journal.json"


def _files(folder: Path) -> tuple[Path, Path, Path]:
    """The files that are replaced, in this folder."""
    run = RunFolder(folder)
    return run.source, folder / "environment.txt", run.config


def _write_aside(run: RunFolder, config: str) -> None:
    new, previous = _folder(run) / "new", _folder(run) / "previous"
    new.mkdir(parents=True)
    previous.mkdir()
    source, environment, config_file = _files(new)
    with ThreadPoolExecutor() as pool:  # git, which checks every file, runs during the copy
        text = pool.submit(_environment)
        copy_source(source)
    environment.write_text(text.result())
    replace_file(config_file, config.encode())
    for now, before in zip(_files(run.path)[1:], _files(previous)[1:], strict=True):
        if now.exists():
            before.write_bytes(now.read_bytes())


def _exchange(run: RunFolder, on_slurm: bool, sizes: int, task: str) -> None:
    now, before, new = (_files(folder) for folder in (run.path, _folder(run) / "previous", _folder(run) / "new"))
    journal: dict[str, Any] = {
        "existing": [path.name for path in now if path.exists()],
        "ledger_bytes": run.ledger.stat().st_size if run.ledger.exists() else 0,
        "job_files": sorted(path.name for path in run.jobs.glob("*")),
        "on_slurm": on_slurm,
        "sizes": sizes,
        "task": task,
    }
    replace_file(_journal(run), json.dumps(journal).encode())
    if now[0].exists():
        _make_writable(now[0])  # a folder that is not cannot be moved to another one
        now[0].rename(before[0])
    for path, replacement in zip(now, new, strict=True):
        replacement.rename(path)


def _put_back(run: RunFolder) -> None:
    """Restores what was before the exchange, however far that or an earlier call of this function came."""
    if is_interrupted(run):
        journal = json.loads(_journal(run).read_text())
        now, before, new = (_files(folder) for folder in (run.path, _folder(run) / "previous", _folder(run) / "new"))
        for path, previous, replacement in zip(now, before, new, strict=True):
            restorable = previous.exists()
            if path.is_dir() if restorable else path.name not in journal["existing"] and path.exists():
                path.rename(replacement)
            if restorable:
                previous.replace(path)
        _take_back_events(run, journal["ledger_bytes"])
        if not run.jobs.is_symlink():  # else it is shared with other runs, which may be submitted right now
            for file in run.jobs.glob("*"):
                if SUBMITIT_FILES.fullmatch(file.name) and file.name not in journal["job_files"]:
                    file.unlink()
    _finish(run)


def _finish(run: RunFolder) -> None:
    _journal(run).unlink(missing_ok=True)
    if _folder(run).exists():
        _remove_tree(_folder(run))


def _recorded_since(run: RunFolder, ledger_bytes: int) -> list[str]:
    """The names of the events after a position in the ledger."""
    if not run.ledger.exists():
        return []
    out = []
    for line in run.ledger.read_bytes()[ledger_bytes:].split(b"\n"):
        if line:
            try:
                out.append(str(json.loads(line)["event"]))
            except (ValueError, KeyError, TypeError):
                out.append("unknown")
    return out


def _take_back_events(run: RunFolder, ledger_bytes: int) -> None:
    """Removes the events of a submission that failed, unless a job has added others."""
    if not run.ledger.exists():
        return
    with run.ledger.open("r+b") as file:
        lock(file.fileno(), fcntl.LOCK_EX)
        if set(_recorded_since(run, ledger_bytes)) <= RECORDED:
            file.truncate(ledger_bytes)
    if not ledger_bytes and not run.ledger.stat().st_size:
        run.ledger.unlink()


def copy_source(folder: Path) -> None:
    """Copies the packages of this project."""
    for package in PACKAGES:
        _copy_tree(ROOT / package, folder / package)


def _copy_tree(source: Path, target: Path) -> None:
    """Copies contents only: files of a read-only installation must not become read-only here."""
    target.mkdir(parents=True)
    for entry in os.scandir(source):
        if entry.name not in NOT_COPIED:
            copy = _copy_tree if entry.is_dir() else shutil.copyfile
            copy(Path(entry.path), target / entry.name)


def _make_writable(folder: Path) -> None:
    """So that its entries can be removed: sources of older versions have the modes of the installation."""
    for path, _, _ in os.walk(folder):
        mode = os.stat(path).st_mode
        if mode & 0o700 != 0o700:
            os.chmod(path, mode | 0o700)


def _remove_tree(folder: Path) -> None:
    _make_writable(folder)
    shutil.rmtree(folder)


@cache
def _environment() -> str:
    """The command, the commit, and every installed package."""
    is_git = is_checkout() and shutil.which("git")  # an installed copy may be inside of another project
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"] if is_git else ["true"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    lines = [
        f"command: {' '.join([started_as(sys.argv[0]), *sys.argv[1:]])}",
        f"commit: {commit.stdout.strip() or 'not a git checkout'}",
        f"python: {platform.python_version()} ({sys.executable})",
        f"host: {platform.node()} ({platform.platform()})",
        *_packages(),
    ]
    return "\n".join(lines) + "\n"


def _packages() -> list[str]:
    """`name==version` of every installed package, from folder names alone: importlib.metadata is much slower."""
    found = [info.name for path in sys.path if path for info in Path(path).glob("*.dist-info")]
    return sorted("==".join(name.removesuffix(".dist-info").rsplit("-", 1)) for name in found)


def link_jobs_folder(run: RunFolder) -> None:
    """Makes the jobs folder of a sweep's run a link to the one that all tasks of the array share."""
    shared = run.path.parent / run.jobs.name
    shared.mkdir(exist_ok=True)
    if not run.jobs.is_symlink() and not run.jobs.exists():
        run.jobs.symlink_to(Path("..") / run.jobs.name)
