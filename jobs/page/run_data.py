"""What a report shows of one run, as plain values.  Whatever is missing or damaged is left out, and named."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs.page.curves import TIMES, Curve, finite, read_curves
from jobs.page.rank_totals import RankTotals, read_rank_times
from jobs.page.step_times import RankTimes, read_step_times
from jobs.slurm.tables import QueuedJob
from jobs.watch.details import with_details
from jobs.watch.run_status import Status, is_run, read_events, status
from vit.config.paths import printable
from vit.config.user_error import UserError
from vit.history.attempts import Attempt, mark_killed, read_attempts
from vit.history.learning_curve import integer
from vit.history.notes import notes
from vit.history.resources import Usage, read_usage
from vit.history.run_history import RunHistory
from vit.history.settings import flattened
from vit.history.time_spent import TimeSpent, time_spent
from vit.run.counts import counted
from vit.run.disk_errors import read_if_exists
from vit.run.evaluation_file import Evaluation, find_evaluations, read_evaluation
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import Record, read_raw_lines

LIVE = {"running", "unknown"}  # states in which the last attempt may still run


@dataclass(frozen=True)
class SavedEvaluation:
    """An evaluation that `vit.evaluate --save` wrote."""

    folder: Path
    evaluation: Evaluation


@dataclass(kw_only=True)
class RunData:
    """Everything that is known of a run."""

    name: str
    folder: Path
    status: Status
    settings: dict[str, Any] = field(default_factory=dict)  # by dotted name
    curves: dict[str, Curve] = field(default_factory=dict)
    repeated: dict[str, Curve] = field(default_factory=dict)  # of steps that were repeated later
    events: list[Event] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    time: TimeSpent = field(default_factory=TimeSpent)
    environment: list[str] = field(default_factory=list)  # lines of environment.txt
    step_times: list[RankTimes] = field(default_factory=list)
    rank_times: list[RankTotals] = field(default_factory=list)
    evaluations: list[SavedEvaluation] = field(default_factory=list)
    step: int | None = None  # the newest
    steps: int | None = None  # of the whole run
    epoch: float | None = None
    epochs: float | None = None
    usage: list[Usage] = field(default_factory=list)  # of GPUs and cores
    notes: list[str] = field(default_factory=list)  # what to change, in words
    problems: list[str] = field(default_factory=list)  # what could not be read, in words

    @property
    def began(self) -> float | None:
        """The time from which hours are counted: the beginning of the first attempt, or of the learning curve."""
        if self.attempts:
            return self.attempts[0].began
        return next((c.times[0] for c in self.curves.values() if c.has_times()), None)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and top-1 accuracy of the best evaluation, of the EMA if there is one."""
        return _best(self.curves.get("val_top1_average") or self.curves.get("val_top1"))


def read_run(folder: Path, jobs: Mapping[str, QueuedJob] | None = None, name: str = "") -> RunData:
    """Reads a run folder; `jobs` are those in Slurm's queue, None if they are unknown.  Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if not is_shown(folder):
        raise UserError(f"{folder}: not a run folder (it has no config.yaml, ledger.jsonl or metrics.jsonl)")
    run = RunFolder(folder)
    data = RunData(
        name=name or printable(folder.resolve().name), folder=folder, status=with_details(status(run, jobs), run)
    )
    records = _records(run.metrics, data.problems)
    newest = _read_metrics(run, data, records)
    _read_ledger(run, data, newest)
    _read_config(run, data)
    _read_evaluations(data)
    try:
        text = read_if_exists(folder / "environment.txt", (folder / "environment.txt").read_bytes)
        data.environment = (text or b"").decode(errors="replace").splitlines()
        data.step_times, data.rank_times = read_step_times(run.logs), read_rank_times(run.logs)
        data.notes = _notes(run, data, records)
    except OSError as error:
        data.problems.append(str(error))
    data.problems += [problem for problem in data.status.problems if problem not in data.problems]
    return data


def _notes(run: RunFolder, data: RunData, records: Sequence[Record]) -> list[str]:
    """What to change.  Raises OSError."""
    curve = [record for record in records if integer(record, "step") is not None]
    data.usage = read_usage(run)
    history = RunHistory(
        events=data.events, attempts=data.attempts, curve=curve, settings=data.settings, usage=data.usage
    )
    return notes(history)


def is_shown(folder: Path) -> bool:
    """Whether a folder is a run, or has an evaluation, of which a report can show something."""
    return is_run(folder) or RunFolder(folder).metrics.is_file() or bool(_evaluations(folder))


def _evaluations(folder: Path) -> list[Path]:
    try:
        return find_evaluations(folder)
    except OSError:
        return []


def _read_evaluations(data: RunData) -> None:
    for folder in _evaluations(data.folder):
        try:
            data.evaluations.append(SavedEvaluation(folder, read_evaluation(folder)))
        except (UserError, OSError) as error:
            data.problems.append(str(error))


def _read_metrics(run: RunFolder, data: RunData, records: Sequence[Record]) -> Record | None:
    """Sets the curves and the position; returns the newest record."""
    data.curves, damaged = read_curves(records)
    if damaged:
        verb = "is" if damaged == 1 else "are"
        data.problems.append(
            f"{run.metrics.name}: {counted(damaged, 'value')} {verb} not finite or damaged, and left out"
        )
    data.repeated, _ = read_curves(_records(run.metrics.with_suffix(".superseded.jsonl"), data.problems, quiet=True))
    newest = max(records, key=lambda r: finite(r.get("step")) or -1.0, default=None)
    if newest is not None:
        step, steps = finite(newest.get("step")), finite(newest.get("steps"))
        data.step, data.steps = (None if step is None else int(step)), (None if steps is None else int(steps))
        data.epoch, data.epochs = finite(newest.get("epoch")), finite(newest.get("epochs"))
    return newest


def _records(path: Path, problems: list[str], quiet: bool = False) -> list[Record]:
    try:
        lines = read_raw_lines(path)
    except OSError as error:
        problems.append(str(error))
        return []
    records = [record for _, record in lines if record is not None]
    damaged = len(lines) - len(records)
    if damaged and not quiet:
        verb = "is" if damaged == 1 else "are"
        problems.append(f"{path.name}: {counted(damaged, 'line')} of {len(lines):,} {verb} damaged, and left out")
    return records


def _read_ledger(run: RunFolder, data: RunData, newest: Record | None) -> None:
    _records(run.ledger, data.problems)  # names damaged lines
    try:
        data.events = [_cleaned(event) for event in read_events(run)]
    except OSError:
        return  # named already
    timed = newest if newest is not None and finite(newest.get("time")) is not None else None
    data.attempts = read_attempts(data.events, _cleaned(timed) if timed else None)
    if data.attempts and data.attempts[-1].ending == "running" and data.status.state not in LIVE:
        mark_killed(data.attempts[-1])
    data.time = time_spent(data.attempts)


def _cleaned(values: dict[str, Any]) -> dict[str, Any]:
    """An event or record without numbers that are not finite."""
    out = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out[name] = _cleaned(value)
        elif (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or (finite(value) is not None and (name != "time" or TIMES[0] <= value <= TIMES[1]))
        ):
            out[name] = value
    return out


def _read_config(run: RunFolder, data: RunData) -> None:
    try:
        text = read_if_exists(run.config, run.config.read_bytes)
        values = yaml.safe_load(text) if text is not None else {}
    except OSError as error:
        data.problems.append(str(error))
        return
    except (yaml.YAMLError, ValueError) as error:
        data.problems.append(f"{run.config.name} is damaged: {str(error).splitlines()[0]}")
        return
    if isinstance(values, dict):
        data.settings = flattened(values)
    else:
        data.problems.append(f"{run.config.name} is damaged: it holds no settings")


def shown(value: Any) -> str:
    """A setting's value in one line of text."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, int):
        return str(value)
    return (
        f"{value:.12g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else json.dumps(value, default=str)
    )


def _best(curve: Curve | None) -> tuple[int, float] | None:
    if curve is None:
        return None
    i = max(range(len(curve)), key=lambda i: curve.values[i])
    return curve.steps[i], curve.values[i]
