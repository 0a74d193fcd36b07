"""What a chart draws as one line: a run, or the mean of runs that differ only in their seed."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from jobs.page.curves import Curve
from jobs.page.lines import Spread
from jobs.page.run_data import RunData, shown
from vit.config.paths import printable
from vit.history.settings import apart_from_seed
from vit.run.counts import counted


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of each chart."""

    name: str  # `demo`; of several runs `demo (2 of 3 seeds)`
    runs: Sequence[RunData]  # several, if they differ only in their seed
    drawn: Sequence[RunData]  # those of them whose curves are in the mean
    curves: Mapping[str, Curve]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    began: float | None  # Unix time from which the times of the curves are counted
    breaks: Sequence[float] = ()
    duration: float | None  # seconds

    @property
    def epochs(self) -> float | None:
        """The length of the whole runs."""
        return max((run.epochs for run in self.runs if run.epochs), default=None)

    @property
    def is_mean(self) -> bool:
        """Whether it stands for several runs."""
        return len(self.runs) > 1


def series_of(runs: Sequence[RunData], each: bool = False) -> list[Series]:
    """The runs in their order; those that differ only in their seed become one, unless `each` is to be drawn."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        same = repr(sorted(apart_from_seed(run.settings).items())) if "seed" in run.settings else repr(run.folder)
        groups.setdefault(same, []).append(run)
    out = list[list[RunData]]()
    for group in groups.values():
        seeds = [shown(run.settings.get("seed")) for run in group]
        together = not each and len(set(seeds)) == len(seeds) > 1  # one seed twice is no sample of seeds
        out += [group] if together else [[run] for run in group]
    names = [_name(group) for group in out]
    unique = [
        f"{printable(group[0].folder.resolve().parent.name)}/{name}" if names.count(name) > 1 else name
        for name, group in zip(names, out, strict=True)
    ]
    made = [
        single(group[0]) if len(group) == 1 else _mean(name, group) for name, group in zip(unique, out, strict=True)
    ]
    return sorted(made, key=lambda series: runs.index(series.runs[0]))


def single(run: RunData) -> Series:
    """The line of one run."""
    return Series(
        name=run.name,
        runs=[run],
        drawn=[run],
        curves=run.curves,
        began=run.began,
        breaks=sorted(attempt.began for attempt in run.attempts),
        duration=_duration(run),
    )


def _name(group: Sequence[RunData]) -> str:
    """`vit_b16` of the runs `vit_b16-sweep/seed=0` and `seed=1`; `lr=1e-3` of `lr=1e-3,seed=0` and `lr=1e-3,seed=1`."""
    if len(group) == 1:
        return group[0].name
    paths = [run.folder.resolve() for run in group]
    common = {(path.parent, _without_seed(path)) for path in paths}
    if len(common) == 1 and all("seed=" in path.name for path in paths):
        parent, rest = common.pop()
        return printable(rest or parent.name.removesuffix("-sweep"))
    return ", ".join(run.name for run in group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")


def _without_seed(path: Path) -> str:
    return ",".join(part for part in path.name.split(",") if not re.match("seed=", part))


def _mean(name: str, group: Sequence[RunData]) -> Series:
    """Of the finished runs; while none is, of all up to the last step that they have in common."""
    finished = [run for run in group if run.status.state == "finished" and "loss" in run.curves]
    drawn = finished or [run for run in group if "loss" in run.curves]
    seeds = counted(len(group), "seed")
    if not finished:
        seeds += ", not finished"
    elif len(finished) < len(group):
        seeds = f"{len(finished)} of {seeds}"
    curves, spreads = {}, {}
    for value in dict.fromkeys(value for run in drawn for value in run.curves):
        if all(value in run.curves for run in drawn):
            found = _mean_curve([run.curves[value] for run in drawn], [run.began for run in drawn])
            if found is not None:
                curves[value], spreads[value] = found
    durations = [seconds for run in drawn if (seconds := _duration(run)) is not None]
    return Series(
        name=f"{name} ({seeds})",
        runs=group,
        drawn=drawn,
        curves=curves,
        spreads=spreads if len(drawn) > 1 else {},
        began=0.0,
        duration=max(durations) if len(durations) == len(drawn) and durations else None,
    )


def _mean_curve(curves: Sequence[Curve], began: Sequence[float | None]) -> tuple[Curve, Spread] | None:
    """At the steps that all curves have, None without any; its times are the mean seconds since the beginnings."""
    places = [{step: i for i, step in enumerate(curve.steps)} for curve in curves]
    steps = sorted(set(places[0]).intersection(*places[1:]))
    if not steps:
        return None
    mean, low, high = Curve(), [], []
    for step in steps:
        at = [(curve, place[step]) for curve, place in zip(curves, places, strict=True)]
        values = [curve.values[i] for curve, i in at]
        times = [
            curve.times[i] - (math.nan if zero is None else zero) for (curve, i), zero in zip(at, began, strict=True)
        ]
        mean.steps.append(step)
        mean.epochs.append(curves[0].epochs[places[0][step]])
        mean.times.append(fmean(times))
        mean.values.append(fmean(values))
        low.append(min(values))
        high.append(max(values))
    return mean, Spread(low, high)


def _duration(run: RunData) -> float | None:
    curves = [curve for curve in (*run.curves.values(), *run.repeated.values()) if curve.has_times()]
    if run.began is None or not curves:
        return None
    ends = [attempt.ended for attempt in run.attempts if attempt.ended is not None]
    return max(*ends, *(max(curve.times) for curve in curves), run.began) - run.began
