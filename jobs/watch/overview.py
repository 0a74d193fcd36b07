"""Finds the runs in folders and reads their state, together with that of their Slurm jobs."""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jobs.login import slurm_queries
from jobs.login.multi_cluster import elsewhere
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError
from jobs.slurm.tables import QueuedJob
from jobs.watch.details import with_details, with_history
from jobs.watch.file_cache import one_look
from jobs.watch.run_status import Status, is_run, newest_jobs, prefetch, read_events, status
from vit.config.paths import printable
from vit.history.run_history import RunHistory
from vit.run.folder import RunFolder

READERS = 8  # threads that read runs: a file server answers each of them after a moment
FEW_RUNS = 20  # which one thread reads
Jobs = Mapping[str, QueuedJob]


@dataclass(frozen=True)
class Overview:
    """The status of runs, in tables by the name of their folder; those that were named themselves are in table ""."""

    tables: dict[str, list[Status]]
    alone: RunHistory | None = None  # if exactly one run was named, all that is known of it
    errors: Sequence[str] = ()  # about paths that hold no run
    slurm: str = ""  # why the state of Slurm jobs is not known
    empty: str = ""  # what to say if there are no runs

    @property
    def warnings(self) -> list[str]:
        """All that could not be found out."""
        return [*self.errors, *filter(None, [self.slurm])]

    @property
    def exit_code(self) -> int:
        """1 if a path holds no run, or one that cannot be read."""
        unreadable = any(row.state == "unreadable" or row.problems for rows in self.tables.values() for row in rows)
        return 1 if self.errors or unreadable else 0


def group_runs(paths: Sequence[Path]) -> tuple[dict[str, list[RunFolder]], list[str]]:
    """The runs of each table, and an error for each path that holds no run or cannot be listed."""
    tables: dict[str, list[RunFolder]] = {"": []}
    errors = []
    for path in paths:
        shown = printable(path)
        try:
            if not path.is_dir():
                errors.append(f"{shown}: {'not a folder' if path.exists() else 'no such folder'}")
            elif is_run(path):
                tables[""].append(RunFolder(path))
            elif found := runs_in(path):
                tables |= found
            else:
                errors.append(f"{shown}: contains no run (no config.yaml, no ledger.jsonl)")
        except OSError as error:
            errors.append(str(error))
    return {name: runs for name, runs in tables.items() if runs}, errors


def runs_in(folder: Path) -> dict[str, list[RunFolder]]:
    """The runs in a folder, and those of each sweep in it, by the path of their parent folder.  Raises OSError."""
    out = {}
    children = folders_in(folder)
    others = [child for child in children if not is_run(child)]
    for parent, paths in [(folder, children), *((child, folders_in(child)) for child in others)]:
        if runs := [RunFolder(path) for path in paths if is_run(path)]:
            out[str(parent)] = runs
    return out


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, which need not exist, by name; they are not asked one by one.  Raises OSError."""
    try:
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(entry.name for entry in entries if entry.is_dir())]
    except FileNotFoundError:
        return []


class SlurmJobs:
    """Asks Slurm in a thread of its own: it may take long to answer, and meanwhile the run folders are read."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._jobs: Jobs | None = None
        self.warning = "Slurm has not answered yet"  # why the jobs are not known

    def ask(self, job_ids: set[str]) -> None:
        """Starts a query, unless one is being answered."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._query, args=(job_ids,), daemon=True)
            self._thread.start()

    def answer(self, patience: float | None = None) -> Jobs | None:
        """The jobs in the queue, by the newest answer that came; None if they are not known.

        Waits at most for `patience` seconds; if that is None, until Slurm has answered or its time is up.
        """
        if self._thread is not None:
            self._thread.join(patience)
        return self._jobs

    def _query(self, job_ids: set[str]) -> None:
        try:
            self._jobs, self.warning = slurm_queries.queued_jobs(job_ids), ""
        except (SlurmUnreachableError, SlurmNotFoundError, OSError) as error:
            self._jobs, self.warning = None, str(error)


def look(paths: Sequence[Path], slurm: SlurmJobs, patience: float | None = None) -> Overview:
    """Reads the runs in these paths, or those in `runs/`; what cannot be read is named, and the rest is there.

    After `patience` seconds, an earlier answer of Slurm will do.
    """
    with one_look():
        return _look(paths, slurm, patience)


def _look(paths: Sequence[Path], slurm: SlurmJobs, patience: float | None) -> Overview:
    try:
        tables, errors = group_runs(paths) if paths else (runs_in(Path("runs")), [])
    except OSError as error:  # a folder of runs cannot be listed
        tables, errors = {}, [str(error)]
    runs = [run for runs in tables.values() for run in runs]
    with ThreadPoolExecutor(READERS if len(runs) > FEW_RUNS else 1) as pool:
        slurm.ask({job for jobs in pool.map(newest_jobs, runs) for job in jobs})
        list(pool.map(prefetch, runs))
    jobs = slurm.answer(patience)
    others = {run: why for run in runs if jobs is not None and (why := _elsewhere(run))}
    found = {
        name: [with_details(status(run, None if run in others else jobs), run) for run in runs]
        for name, runs in tables.items()
    }
    empty = "" if errors else "no runs in runs/ yet; to show other runs, name their folders"
    alone = None
    if len(paths) == 1 and set(found) == {""}:
        row, alone = with_history(found[""][0], runs[0])
        found = {"": [row]}
    unknown = any(row.state == "unknown" for rows in found.values() for row in rows)
    reason = "; ".join(dict.fromkeys(filter(None, [slurm.warning, *others.values()])))
    return Overview(found, alone, errors, f"the state of Slurm jobs is unknown: {reason}" if unknown else "", empty)


def _elsewhere(run: RunFolder) -> str:
    """Why the job of a run cannot be looked for on the cluster that is asked, or ""."""
    try:
        return elsewhere(read_events(run))
    except (SlurmUnreachableError, SlurmNotFoundError, OSError):
        return ""
