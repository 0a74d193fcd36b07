"""Ranks the runs of a sweep by their best top-1 accuracy; runs that differ in their seed only are taken together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from jobs.watch.colors import BOLD, DIM, paint
from jobs.watch.details import settings_of
from jobs.watch.run_status import Status
from jobs.watch.words import NONE, pad, printable, shorten, width
from vit.history.settings import Settings, apart_from_seed
from vit.run.counts import counted
from vit.run.folder import RunFolder


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    settings: str  # in which it differs from the other groups: `lr=1e-3, weight_decay=0.1`
    runs: Sequence[Status]

    @property
    def scores(self) -> list[float]:
        """The best top-1 accuracy of each run that has one."""
        return [run.best_top1 for run in self.runs if run.best_top1 is not None]

    @property
    def seeds(self) -> str:
        """How many there are: `3`; `2 of 3` if one has no evaluation yet."""
        scored, all_of_them = len(self.scores), len(self.runs)
        return str(scored) if scored == all_of_them else f"{scored} of {all_of_them}"

    @property
    def mean(self) -> float:
        """The mean of the scores."""
        return fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds; None for a single one."""
        return stdev(self.scores) if len(self.scores) > 1 else None


def is_sweep(rows: Sequence[Status]) -> bool:
    """Whether runs are those of a `--sweep`, by their names: `lr=1e-3,seed=0`."""
    return len(rows) > 1 and all("=" in row.run for row in rows)


def rank(rows: Sequence[Status]) -> list[Group]:
    """The groups by their mean best accuracy, the best one first; those without an evaluation are left out.

    Raises OSError if the settings of a run cannot be read.
    """
    settings = [_compared(settings_of(RunFolder(Path(row.folder))), row) for row in rows]
    first = settings[0]
    names = sorted(
        name
        for name in {name for one in settings for name in one}
        if any(s.get(name) != first.get(name) for s in settings)
    )
    groups: dict[tuple[str, ...], list[Status]] = {}
    for row, one in zip(rows, settings, strict=True):
        groups.setdefault(tuple(_value(one.get(name)) for name in names), []).append(row)
    short = _short_names(names)
    found = [
        Group(", ".join(f"{short[name]}={value}" for name, value in zip(names, key, strict=True)), runs)
        for key, runs in groups.items()
    ]
    return sorted((group for group in found if group.scores), key=lambda group: -group.mean)


def _compared(settings: Settings, row: Status) -> Mapping[str, object]:
    """The settings by which runs are compared; those without a config differ from all others by their name."""
    return apart_from_seed(settings) if settings else {"run": row.run}


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """`optim.lr` -> `lr`, where that is unique."""
    leaves = [name.rpartition(".")[2] for name in names]
    return {name: leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(names, leaves, strict=True)}


def format_ranking(groups: Sequence[Group], columns: int) -> list[str]:
    """The lines of the ranking."""
    if not groups:
        return []
    table = [("", "settings", "seeds", "best top-1", "±", "highest", "at epoch", "")]
    for i, group in enumerate(groups):
        epochs = [run.best_epoch for run in group.runs if run.best_epoch is not None]
        span = sorted({f"{epoch:.0f}" for epoch in (min(epochs), max(epochs))}, key=float) if epochs else [NONE]
        unfinished = sum(run.state != "finished" for run in group.runs)
        table.append(
            (
                str(i + 1),
                printable(group.settings) or "all",
                group.seeds,
                f"{group.mean:.2%}",
                NONE if group.deviation is None else f"{group.deviation:.2%}",
                f"{max(group.scores):.2%}" if len(group.scores) > 1 else NONE,
                "–".join(span),
                f"{counted(unfinished, 'run')} not finished" if unfinished else "",
            )
        )
    kept = [i for i in range(8) if i < 2 or any(line[i] not in (NONE, "") for line in table[1:])]
    widths = {i: max(width(line[i]) for line in table) for i in kept}
    for dropped in (7, 6, 5):  # if there is too little room
        if sum(widths[i] + 2 for i in kept) - widths[1] + min(16, widths[1]) > columns:
            kept = [i for i in kept if i != dropped]
    widths[1] = max(min(16, widths[1]), min(widths[1], columns - sum(widths[i] + 2 for i in kept if i != 1)))
    lines = [paint("ranking by best top-1, mean and standard deviation over seeds", BOLD)]
    for n, line in enumerate(table):
        cells = [pad(shorten(line[i], widths[i], middle=True), widths[i], left=i in (1, 7)) for i in kept]
        lines.append(paint("  ".join(cells).rstrip(), "" if n else DIM))
    return lines
