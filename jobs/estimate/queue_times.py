"""When a job of each size could start, by `sbatch --test-only`: Slurm's own estimate, nothing is submitted."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.login.resources import Resources
from jobs.login.sbatch import parameters, script
from jobs.login.sbatch_environment import sbatch_environment
from jobs.login.slurm_queries import rejection_message
from jobs.slurm.errors import NO_CLUSTER
from vit.run.folder import RunFolder

TIMEOUT_SECONDS = 8
AT_ONCE = 4  # questions to the controller, which other people use too


@dataclass(frozen=True)
class QueueTime:
    """When a job could start; None if Slurm does not say, with the reason."""

    start: float | None = None  # Unix time
    nodes: str = ""
    why: str = ""


def queue_times(requests: Sequence[tuple[Resources, Sequence[RunFolder]]]) -> list[QueueTime]:
    """Asks for all jobs; each is described as it would be submitted."""
    if not requests:
        return []
    scripts = [script(runs[0].jobs, resources, runs, "slurm") for resources, runs in requests]
    options = parameters(*requests[0])
    clusters = [resources.cluster for resources, _ in requests]
    with sbatch_environment({*options, *options["additional_parameters"]}), ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(_ask, scripts))
    return [
        answer if answer.start is not None or answer.why or not why else QueueTime(why=rejection_message(why, cluster))
        for (answer, why), cluster in zip(answers, clusters, strict=True)
    ]


def _ask(text: str) -> tuple[QueueTime, str]:
    """The answer, and what sbatch printed if it refused."""
    environment = os.environ | {"SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"],
            input=text,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return QueueTime(why="sbatch was not found"), ""
    except subprocess.TimeoutExpired:
        return QueueTime(why="Slurm does not respond"), ""
    if NO_CLUSTER in done.stderr:
        return QueueTime(why="Slurm's commands are installed, but no cluster is configured"), ""
    return parse(done.stdout + done.stderr), done.stderr


def parse(text: str) -> QueueTime:
    """`sbatch: Job 12 to start at 2026-03-01T14:20:00 using 8 processors on nodes n[1-2] in partition gpu`."""
    found = re.search(r"to start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:.* on nodes (\S+))?", text)
    if found is None:
        return QueueTime()
    return QueueTime(time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")), found[2] or "")
