"""What the runs in the runs folder have measured: images per second, starts, evaluations, checkpoints.  No torch."""

import itertools
import os
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.estimate.speeds import CPU, Overheads, SaveTimes, Speed, relevant
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.config.user_error import UserError
from vit.data.dataset_manifest import missing_file, read_dataset_manifest
from vit.history.attempts import Attempt, read_attempts
from vit.history.learning_curve import integer, number, read_curve, read_evaluations, read_tail, training
from vit.history.resources import Usage, mean_usage, read_usage
from vit.history.settings import Settings, model_of, read_settings, setting
from vit.history.time_spent import attempt_seconds
from vit.model.weight_fit import state_bytes
from vit.run.folder import Event, RunFolder
from vit.run.jsonl import Record

MOST_RUNS = 200  # the newest ones are read
NEWEST_BYTES = 1 << 16  # of a learning curve: about two hundred records
FEW_RECORDS = 3  # of fewer, a speed is not known
TRIMMED = 0.05  # of the records, at each end


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """How long evaluations took."""

    model: ModelConfig
    images_per_second: float  # of each rank; those of the averaged weights count too
    source: str
    device: str


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What one run has measured."""

    name: str
    speeds: tuple[Speed, ...]
    overheads: Overheads | None
    evaluations: Evaluations | None
    saves: SaveTimes | None


@dataclass
class PastRuns:
    """All of them, newest first, and what was left out."""

    runs: list[PastRun] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # which folders cannot be used, and why
    unread: int = 0  # older runs, for which there was no time

    @property
    def speeds(self) -> list[Speed]:
        """The speeds of all runs."""
        return [speed for run in self.runs for speed in run.speeds]

    def named(self, name: str) -> PastRun | None:
        """The run with this name."""
        return next((run for run in self.runs if run.name == name), None)


def read_past_runs(folder: Path, seconds: float) -> PastRuns:
    """Reads the runs in a folder, and those of the sweeps in it, the newest first, for about so many seconds."""
    out, deadline = PastRuns(), time.monotonic() + seconds
    found = sorted(_run_folders(folder, out.skipped), reverse=True)
    for i, (_, path) in enumerate(found):
        if i >= MOST_RUNS or time.monotonic() > deadline:
            out.unread = len(found) - i
            break
        name = str(path.relative_to(folder))
        try:
            run = _read(RunFolder(path), name)
        except (OSError, UserError) as error:
            out.skipped.append(str(error) if str(path) in str(error) else f"{name}: {error}")
            continue
        out.runs += [run] if run is not None else []
    return out


def _run_folders(folder: Path, skipped: list[str]) -> list[tuple[float, Path]]:
    """The run folders that have a learning curve, with the time at which it was written last."""
    out = []
    for path in _folders(folder, skipped):
        if (written := _modified(path)) is not None:
            out.append((written, path))
        elif not (path / "config.yaml").exists():
            out += [(t, child) for child in _folders(path, skipped) if (t := _modified(child)) is not None]
    return out


def _folders(folder: Path, skipped: list[str]) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        skipped.append(str(error))
        return []


def _modified(path: Path) -> float | None:
    try:
        return (path / "metrics.jsonl").stat().st_mtime
    except OSError:
        return None


def _read(run: RunFolder, name: str) -> PastRun | None:
    """None if the run has measured nothing.  Raises OSError, UserError."""
    settings = read_settings(run)
    cfg = _config(settings)
    if cfg is None:
        raise UserError(f"{run.config} is damaged or missing")
    events = [event for event in run.events() if isinstance(event["event"], str)]
    curve = read_curve(run.metrics) if cfg.train_sizes else read_tail(run.metrics, NEWEST_BYTES)
    attempts = [
        a for a in read_attempts(events, curve[-1] if curve else None) if a.started is not None and (a.ranks or 0) > 0
    ]
    if not attempts:
        return None
    usage = mean_usage(read_usage(run))
    cores = usage.cores if usage is not None else None
    return PastRun(
        name=name,
        speeds=tuple(_speeds(name, cfg, settings, attempts, curve, usage)),
        overheads=_overheads(name, attempts),
        evaluations=_evaluations(name, cfg, settings, attempts, read_evaluations(run.metrics)[0], cores),
        saves=_saves(name, cfg, settings, events, attempts),
    )


def _config(settings: Settings) -> Config | None:
    """The settings of a run that matter here; None if they are not those of a run."""
    model = model_of(settings)
    if model is None or "epochs" not in settings:
        return None
    rows = settings.get("train_sizes") or ()
    names = ("epochs", "global_batch", "micro_batch", "precision", "compile", "cuda_graphs", "exact", "epochs_count")
    given: dict[str, Any] = {name: setting(settings, name) for name in (*names, "activation_checkpointing")}
    cfg = Config()
    try:
        optim = replace(cfg.optim, warmup_epochs=0, ema_decay=setting(settings, "optim.ema_decay"))
        optim = replace(optim, optimizer=setting(settings, "optim.optimizer"))
        return Config(**given, model=model, optim=optim, train_sizes=tuple(map(tuple, rows)))
    except (UserError, TypeError, ValueError):
        return None


def active(ranks: int, device: str, cores: int | None) -> int:
    """The ranks that compute at the same time: on CPUs each takes one core."""
    return min(ranks, cores) if device == CPU and cores else ranks


def _device(attempt: Attempt) -> str:
    return CPU if attempt.device in ("", CPU) else attempt.device


def _speeds(
    name: str,
    cfg: Config,
    settings: Settings,
    attempts: Sequence[Attempt],
    curve: Sequence[Record],
    usage: Usage | None,
) -> list[Speed]:
    """One for each number of ranks, kind of device and image size."""
    rates: dict[tuple[int, str, int], list[float]] = {}
    schedule = _schedule(cfg, curve)
    stages = schedule.stages if schedule is not None else ()
    for attempt, records in _by_attempt(attempts, curve):
        for record in training(records)[1:]:  # in the first one everything is still cold
            step, rate = integer(record, "step"), number(record, "images_per_second")
            if step and rate and rate > 0 and attempt.ranks:
                stage = sum(step > each.stop for each in stages[:-1])
                rates.setdefault((attempt.ranks, _device(attempt), stage), []).append(rate)
    configs, cores = [each.cfg for each in stages] or [cfg], usage.cores if usage is not None else None
    known = relevant(cfg) | {key: settings[key] for key in relevant(cfg) if key in settings}
    return [
        Speed(
            name=name,
            source=name,
            device=device,
            ranks=ranks,
            model=configs[stage].model,
            settings=known | {"micro_batch": configs[stage].micro_batch},
            images_per_second=_harmonic_mean(found) / active(ranks, device, cores),
            core_share=_core_share(usage, ranks) if device == CPU else 1.0,
            age=max(0.0, time.time() - attempts[-1].seen),
        )
        for (ranks, device, stage), found in rates.items()
        if len(found) >= FEW_RECORDS
    ]


def _core_share(usage: Usage | None, ranks: int) -> float:
    """How much of a core each rank had; 1 if it is not known."""
    if usage is None or usage.cpu is None or not usage.cores:
        return 1.0
    return min(1.0, usage.cpu * usage.cores / active(ranks, CPU, usage.cores))


def _by_attempt(attempts: Sequence[Attempt], curve: Sequence[Record]) -> Iterator[tuple[Attempt, Sequence[Record]]]:
    """Each attempt with its records."""
    records = sorted(curve, key=_time)
    times = [_time(record) for record in records]
    for attempt in attempts:
        first, last = attempt.started or attempt.began, attempt.ended or attempt.seen
        yield attempt, records[bisect_left(times, first) : bisect_right(times, last + 1)]


def _time(record: Record) -> float:
    return number(record, "time") or 0.0


def _schedule(cfg: Config, curve: Sequence[Record]) -> RunSchedule | None:
    """The schedule of a run with several image sizes, whose records have its number of steps."""
    steps = integer(curve[-1], "steps") if curve else None
    if not cfg.train_sizes or not steps:
        return None
    counted = [(model.model.image_size / cfg.model.image_size) ** 2 for model in cfg.stages]
    shares = [
        row[0] / (each if cfg.epochs_count == "pixels" else 1)
        for row, each in zip(cfg.train_sizes, counted, strict=True)
    ]
    return RunSchedule(cfg, max(1, round(steps / sum(shares) * cfg.global_batch / cfg.epochs)))


def _harmonic_mean(rates: Sequence[float]) -> float:
    """The mean speed over equal numbers of images, without the fastest and slowest records."""
    cut = int(TRIMMED * len(rates))
    return statistics.harmonic_mean(sorted(rates)[cut : len(rates) - cut])


def _overheads(name: str, attempts: Sequence[Attempt]) -> Overheads:
    compiling = [attempt.seconds.get("compile", 0.0) for attempt in attempts]
    return Overheads(
        source=name,
        device=_device(attempts[-1]),
        start=statistics.median(attempt_seconds(attempt)["start"] for attempt in attempts),
        compile=max(compiling),
        compile_again=statistics.median(compiling[1:]) if compiling[1:] else min(compiling[0], 0.1 * compiling[0]),
    )


def _evaluations(
    name: str, cfg: Config, settings: Settings, attempts: Sequence[Attempt], curve: Sequence[Record], cores: int | None
) -> Evaluations | None:
    path = Path(str(settings.get("data.val", "")))
    if missing_file(path):
        return None
    limit = setting(settings, "data.limit")
    try:
        samples = read_dataset_manifest(path).samples
    except UserError:
        return None
    images = min(samples, limit or samples) * (2 if cfg.optim.ema_decay else 1)
    total = seconds = 0.0
    for attempt, records in _by_attempt(attempts, curve):
        count = sum("val_top1" in record for record in records)
        spent, ranks = attempt.seconds.get("evaluate", 0.0), attempt.ranks or 1
        if count and spent > 0:
            total, seconds = total + count * images / active(ranks, _device(attempt), cores), seconds + spent
    if not seconds:
        return None
    return Evaluations(model=cfg.model, images_per_second=total / seconds, source=name, device=_device(attempts[-1]))


def _saves(
    name: str, cfg: Config, settings: Settings, events: Sequence[Event], attempts: Sequence[Attempt]
) -> SaveTimes | None:
    saved = [event for event in events if event["event"] == "checkpoint"]
    write = [seconds for event in saved if (seconds := number(event, "seconds")) is not None]
    if not write:
        return None
    waited = sum(attempt.seconds.get("checkpoint", 0.0) for attempt in attempts)
    times = [number(event, "time") or 0.0 for event in saved]
    between = [later - earlier for earlier, later in itertools.pairwise(times) if later > earlier]
    chosen = setting(settings, "checkpoint.every_minutes") == 0  # by the run itself
    return SaveTimes(
        source=name,
        bytes=state_bytes(cfg),
        stall=waited / len(saved),
        write=statistics.median(write),
        interval=statistics.median(between) if between and chosen else SaveTimes.interval,
    )
