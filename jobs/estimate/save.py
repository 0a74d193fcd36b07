"""Disk and time that the checkpoints of a run need, against what the disk and the partition have."""

import os
from collections.abc import Iterator, Mapping

from jobs.estimate.request import Request
from jobs.estimate.wall_time import Basis
from jobs.login.resources import display_path
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError, accounting, slurm_settings
from jobs.node.slurm_job import STOP_SECONDS
from jobs.readiness.disk import format_seconds, needed
from jobs.readiness.finding import format_bytes
from jobs.readiness.preemption_settings import judge, preemption_of


def disk_line(request: Request) -> str:
    """What the runs write, and what is free where they do."""
    gpus, ranks = request.largest.gpus, request.largest.gpus * request.largest.nodes
    needs = [needed(cfg, gpus, ranks) for _, cfg in request.runs]
    largest, total = max(needs, key=lambda need: need.bytes), sum(need.bytes for need in needs)
    of = f" for {len(needs)} runs" if len(needs) > 1 else ""
    kept = f"{largest.checkpoints} checkpoints of {format_bytes(largest.checkpoint)}"
    runs = request.runs[0][0].path.parent
    folder = next(path for path in (runs, *runs.parents) if path.exists())
    try:
        space = os.statvfs(folder)
    except OSError as error:
        free = f"the free space of {display_path(runs)} is not known: {error.strerror}"
    else:
        free = f"{format_bytes(space.f_bavail * space.f_frsize)} are free in {display_path(runs)}"
        if space.f_bavail * space.f_frsize < total:
            free += ": too little"
    return f"up to {format_bytes(total)}{of}: {kept}, logs and compiled graphs; {free}"


def save_lines(request: Request, basis: Basis) -> Iterator[str]:
    """How long a save takes, and the time that it is given."""
    saves = max((basis.saves(cfg) for _, cfg in request.runs), key=lambda found: found.write)
    text = f"about {format_seconds(saves.write)} for {format_bytes(saves.bytes)}, from {saves.source}"
    if not request.on_slurm:
        yield f"{text}; ranks that are told to stop have {STOP_SECONDS} s"
        return
    cluster = request.largest.cluster
    yield f"{text}; at the time limit a run is told {cluster.signal_seconds} s before, and has {STOP_SECONDS} s"
    try:
        settings = slurm_settings()
        qos: Mapping[str, str] = {}
        if settings.config.get("PreemptType") == "preempt/qos" and cluster.qos:
            rows = accounting("qos", ["Name", "GraceTime", "PreemptMode"], "where", f"name={cluster.qos}")
            qos = rows[0] if rows else {}
    except (SlurmUnreachableError, SlurmNotFoundError) as error:
        yield f"what a preemption leaves is not known: {error}"
        return
    for name in dict.fromkeys(group.partition for group in request.groups):
        if name in settings.partitions:
            found = judge(preemption_of(settings, name, qos), cluster.requeue, saves.write)
            yield f"{found.text}{f' → {found.advice}' if found.advice else ''}"
