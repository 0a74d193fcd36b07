"""What the GPUs and CPU cores of a run were used for, as the supervisors of its nodes recorded it.  Imports no torch.

`logs/resources-NODE.json` has one entry for each attempt on that node, the newest last (`jobs/node/resource_log.py`).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vit.history.learning_curve import integer, number
from vit.run.disk_errors import naming, read_if_exists
from vit.run.folder import RunFolder

PREFIX = "resources-"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one attempt used on one node; None where it is not known."""

    node: str
    began: float  # Unix time
    seconds: float  # for which it was observed
    gpu: float | None = None  # mean share of the time in which a kernel ran, over the GPUs
    gpu_memory: int | None = None  # bytes: the peak of the GPU that used most
    gpu_memory_total: int | None = None  # bytes of that GPU
    cores: int | None = None  # that the job may use
    cpu: float | None = None  # mean share of these cores that the ranks used


def read_usage(run: RunFolder) -> list[Usage]:
    """The usage of each attempt on each node, oldest first.  Raises OSError; damaged files are left out."""
    out: list[Usage] = []
    with naming(run.logs):
        names = read_if_exists(run.logs, lambda: os.listdir(run.logs)) or []
    for file in (run.logs / name for name in names if name.startswith(PREFIX) and name.endswith(".json")):
        with naming(file):
            content = read_if_exists(file, file.read_bytes)
        try:
            entries = json.loads(content or b"{}").get("attempts", [])
        except (ValueError, AttributeError):
            continue
        entries = entries if isinstance(entries, list) else []
        node = file.stem.removeprefix(PREFIX)
        out += [usage for entry in entries if isinstance(entry, dict) and (usage := _usage(node, entry))]
    return sorted(out, key=lambda usage: usage.began)


def _usage(node: str, entry: dict[str, Any]) -> Usage | None:
    began, seconds = number(entry, "began"), number(entry, "seconds")
    if began is None or seconds is None:
        return None
    gpus = entry.get("gpus")
    gpus = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    shares = [share for gpu in gpus if (share := number(gpu, "utilization")) is not None]
    fullest: dict[str, Any] = max(gpus, key=lambda gpu: number(gpu, "memory_peak") or 0, default={})
    return Usage(
        node=node,
        began=began,
        seconds=seconds,
        gpu=sum(shares) / len(shares) if shares else None,
        gpu_memory=integer(fullest, "memory_peak"),
        gpu_memory_total=integer(fullest, "memory_total"),
        cores=integer(entry, "cores"),
        cpu=number(entry, "cpu"),
    )


def mean_usage(usages: Sequence[Usage]) -> Usage | None:
    """All attempts and nodes together: means weighted by time, and the highest peak; None if nothing is known."""
    if not usages:
        return None
    fullest = max(usages, key=lambda usage: usage.gpu_memory or 0)
    return Usage(
        node="",
        began=usages[0].began,
        seconds=sum(usage.seconds for usage in usages),
        gpu=_mean([(usage.gpu, usage.seconds) for usage in usages]),
        gpu_memory=fullest.gpu_memory,
        gpu_memory_total=fullest.gpu_memory_total,
        cores=usages[-1].cores,
        cpu=_mean([(usage.cpu, usage.seconds) for usage in usages]),
    )


def _mean(values: Sequence[tuple[float | None, float]]) -> float | None:
    known = [(value, weight) for value, weight in values if value is not None and weight > 0]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
