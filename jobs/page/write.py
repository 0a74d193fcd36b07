"""Finds the runs that a report is about, and writes it: a page with pictures beside it, or one picture."""

import os
from collections.abc import Sequence
from pathlib import Path

from jobs.login import slurm_queries
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError
from jobs.page.document import run_page
from jobs.page.evaluation import ordered
from jobs.page.run_data import RunData, is_shown, read_run
from jobs.page.runs_page import runs_page
from jobs.page.seed_table import seed_lines
from jobs.page.series import Series, series_of
from jobs.slurm.tables import QueuedJob
from jobs.watch.run_status import newest_jobs
from vit.config.paths import printable
from vit.config.user_error import UserError
from vit.run.folder import RunFolder
from vit.run.fsync import replace_file

PAGES = (".html", ".htm")
PICTURES = (".png", ".svg", ".pdf")


class Report:
    """A report of some paths.  `problems` says what could not be shown, `written` what was written."""

    def __init__(
        self,
        paths: Sequence[Path],
        out: Path | None,
        over: Path | None,
        theme: str,
        title: str = "",
        each: bool = False,
    ) -> None:
        """`each`: draw also runs that differ only in their seed one by one.

        Raises UserError if no path can be shown, or the report is of a kind that does not exist.
        """
        self.problems: list[str] = []
        self.written: list[Path] = []
        self.theme, self.title, self.each = theme, title, each
        self.out = out or _default_out(paths)
        if self.out.suffix not in PAGES + PICTURES:
            kinds = ", ".join(PAGES[:1] + PICTURES)
            raise UserError(f"--out {self.out}: the name must end in one of {kinds}")
        folders = self._find(paths)
        jobs = self._jobs([*folders, *([over] if over is not None else [])])
        names = _names(folders)
        self.runs = [run for folder in folders if (run := self._read(folder, jobs, names[folder])) is not None]
        self.over = None
        if over is not None:
            named = [run for run in self.runs if run.folder.resolve() == over.resolve()]
            self.over = named[0] if named else read_run(over, jobs)
        if not self.runs:
            raise UserError("\n".join(self.problems) or "no run was named")

    def write(self) -> None:
        """Raises UserError, OSError."""
        if self.out.suffix in PICTURES:
            self._draw(self.out, self.runs)
            return
        several = len(self.runs) > 1 or self.over is not None
        page = runs_page(self.runs, self.over, self.title, self.each) if several else run_page(self.runs[0], self.title)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.out, page)
        self.written.append(self.out)
        self._draw_beside(self.out.with_name(f"{self.out.stem}-pictures"))

    def seeds(self) -> list[str]:
        """Mean and deviation of runs that differ only in their seed, as a table of text; empty if there are none."""
        return seed_lines(self._series())

    def _series(self) -> list[Series]:
        return series_of(self.runs, self.each or self.over is not None)

    def _draw_beside(self, folder: Path) -> None:
        """Pictures of the main charts of a page."""
        drawn = [run for series in self._series() if "loss" in series.curves for run in series.runs]
        if drawn:
            self._draw(folder / "curves.png", drawn)
        if len(self.runs) > 1:
            return
        from jobs.page.more_figures import draw_confusion, draw_time  # not at the top: Matplotlib takes a second

        run = self.runs[0]
        if run.time.total > 0:
            draw_time(run, folder / "time.png", self.theme)
            self.written.append(folder / "time.png")
        if run.evaluations:
            draw_confusion(ordered(run.evaluations)[0].evaluation, folder / "confusion.png", self.theme)
            self.written.append(folder / "confusion.png")

    def _draw(self, path: Path, runs: Sequence[RunData]) -> None:
        from jobs.page.figures import draw  # not at the top: Matplotlib takes a second

        above = [run for run in runs if run is not self.over]
        if above:
            draw(above, path, self.over, self.theme, self.title, self.each)
        else:
            draw(runs, path, None, self.theme, self.title, self.each)
        self.written.append(path)

    def _find(self, paths: Sequence[Path]) -> list[Path]:
        found: list[Path] = []
        for path in paths:
            runs = [path] if not path.is_dir() or is_shown(path) else runs_below(path)
            if not runs:
                self.problems.append(f"{path}: not a run folder, and contains none (no config.yaml, no ledger.jsonl)")
            found += [run for run in runs if run not in found]
        return found

    def _read(self, folder: Path, jobs: dict[str, QueuedJob] | None, name: str) -> RunData | None:
        try:
            return read_run(folder, jobs, name)
        except (UserError, OSError) as error:
            self.problems.append(str(error))
            return None

    def _jobs(self, folders: Sequence[Path]) -> dict[str, QueuedJob] | None:
        """The jobs of unfinished runs; None if Slurm does not respond, which the states of the runs then say."""
        unfinished = [RunFolder(folder) for folder in folders if folder.is_dir() and not _is_finished(folder)]
        try:
            return slurm_queries.queued_jobs({job for run in unfinished for job in newest_jobs(run)})
        except (SlurmUnreachableError, SlurmNotFoundError):
            return None


def _default_out(paths: Sequence[Path]) -> Path:
    """In the folder of the only run or sweep, or beside the first of several runs."""
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0] / "report.html"
    return Path(os.path.relpath(paths[0].absolute().parent)) / "report.html"


def _is_finished(folder: Path) -> bool:
    try:
        return RunFolder(folder).finished() is not None
    except OSError:
        return False


def runs_below(folder: Path) -> list[Path]:
    """The runs in a folder, and those in the folders in it."""
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    out = []
    for child in children:
        out += [child] if is_shown(child) else sorted(c for c in child.iterdir() if c.is_dir() and is_shown(c))
    return out


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """The names of runs; with those of their parent folders if two would be the same."""
    names = {folder: printable(folder.resolve().name) for folder in folders}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {
        folder: printable("/".join(folder.resolve().parts[-2:])) if name in twice else name
        for folder, name in names.items()
    }
