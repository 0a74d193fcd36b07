"""Details of a run beyond its state, from its config and from what its supervisors recorded about its GPUs."""

from dataclasses import replace
from pathlib import Path

from jobs.watch import file_cache
from jobs.watch.file_cache import cached
from jobs.watch.run_status import Status
from vit.history.resources import mean_usage
from vit.history.run_history import RunHistory, read_history
from vit.history.settings import Settings, model_of, read_settings, setting
from vit.history.utilization import peak_flops, utilization
from vit.run.counts import counted
from vit.run.folder import RunFolder
from vit.run.jsonl import read_raw_lines


def with_details(status: Status, run: RunFolder) -> Status:
    """Adds model FLOP/s utilization, if it is not recorded, and the use of GPUs in the newest attempt that recorded it.

    What cannot be read is left out and named in `problems`.
    """
    problems = list(status.problems)
    mfu, usage = status.mfu, None
    try:
        if mfu is None:
            mfu = _mfu(status, run)
    except OSError as error:
        problems.append(str(error))
    try:
        usages = [usage for usage in file_cache.usage(run) if usage.gpu is not None or usage.gpu_memory is not None]
        began = max((usage.began for usage in usages), default=0.0)
        # The nodes of an attempt begin at almost the same time.
        usage = mean_usage([each for each in usages if each.began > began - 30])
    except OSError as error:
        problems.append(str(error))
    status = replace(status, mfu=mfu, problems=tuple(problems))
    if usage is None:
        return status
    return replace(status, gpu=usage.gpu, gpu_memory=usage.gpu_memory, gpu_memory_total=usage.gpu_memory_total)


def _mfu(status: Status, run: RunFolder) -> float | None:
    """For runs of older versions, all of whose images had the same size.  Raises OSError."""
    if not (status.images_per_second and status.ranks) or peak_flops(status.device, "bf16") is None:
        return None
    settings = settings_of(run)
    model, precision = model_of(settings), str(setting(settings, "precision"))
    if model is None or settings.get("train_sizes"):
        return None
    return utilization(model, precision, status.device, status.ranks, status.images_per_second)


def with_history(status: Status, run: RunFolder) -> tuple[Status, RunHistory]:
    """The whole history of a run, without what cannot be read; that and damaged files are named in its status."""
    problems, damaged, history = list(status.problems), list[str](), RunHistory()
    try:
        damaged = _damaged_files(run)
        history = read_history(run, status.attempts)
    except OSError as error:
        problems += [str(error)] * (str(error) not in (*problems, status.why))
    return replace(status, problems=tuple(problems), damaged=tuple(damaged)), history


def _damaged_files(run: RunFolder) -> list[str]:
    """What is wrong with the content of a run's files, in words.  Raises OSError."""
    out = []
    for path in (run.ledger, run.metrics):
        lines = read_raw_lines(path)
        if damaged := sum(record is None for _, record in lines):
            are = "is" if damaged == 1 else "are"
            out.append(f"{path.name}: {counted(damaged, 'line')} of {len(lines):,} {are} damaged, and left out")
    if run.config.is_file() and not settings_of(run):
        out.append(f"{run.config.name} is damaged: it holds no settings")
    return out


def settings_of(run: RunFolder) -> Settings:
    """The settings of a run, read once.  Raises OSError."""
    return cached(_settings, run.config)


def _settings(config: Path) -> Settings:
    return read_settings(RunFolder(config.parent))
