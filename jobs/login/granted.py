"""What Slurm has accepted of a request: plugins and defaults of the site may have changed it; recorded and printed."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from jobs.login import slurm_queries
from jobs.login.held_jobs import AGAIN, SubmissionError
from jobs.login.resources import Resources, partitions
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError
from jobs.slurm import scontrol, tables
from vit.run.counts import counted
from vit.run.folder import RunFolder

# The fields of `scontrol show job` that are recorded, by their names in the ledger.
FIELDS = {
    "partition": "Partition",
    "account": "Account",
    "qos": "QOS",
    "time_limit": "TimeLimit",
    "nodes": "NumNodes",
    "gpus": "TresPerNode",
    "reservation": "Reservation",
    "features": "Features",
}


def record_granted(runs: Sequence[RunFolder], by_run: Sequence[Sequence[str]], sizes: Sequence[Resources]) -> list[str]:
    """Records what each job has really got, and returns what differs from the request, in words.

    `by_run` are the ids of the jobs of each run, one for each size.  If Slurm does not respond, nothing is recorded:
    the jobs are in the queue all the same.  Raises SubmissionError if a job is not: a controller that is killed forgets
    what it has not written to its disk yet.
    """
    out = []
    for number, resources in enumerate(sizes):
        granted = _granted(by_run[0][number].partition("_")[0])
        if not granted:
            continue
        changed = changes(granted, resources)
        out += changed
        facts: dict[str, Any] = {**granted, **({"changed": changed} if changed else {})}
        for run, ids in zip(runs, by_run, strict=True):
            with suppress(OSError):  # the submission is complete
                run.note("accepted", job=ids[number], **facts)
    return list(dict.fromkeys(out))


def _granted(job: str) -> dict[str, str]:
    """The recorded facts of a job; empty if Slurm does not respond."""
    try:
        facts = slurm_queries.show_job(job)
    except (SlurmUnreachableError, SlurmNotFoundError):
        return {}
    if facts is None:
        raise SubmissionError(f"Slurm has accepted job {job}, but does not know it any more: {AGAIN}")
    found = {name: facts.get(field, "(null)") for name, field in FIELDS.items()}
    return {name: value for name, value in found.items() if value not in ("(null)", "N/A", "")}


def changes(granted: Mapping[str, str], resources: Resources) -> list[str]:
    """What differs from the request, in words: `partition high instead of low`."""
    cluster, out = resources.cluster, []
    requested = partitions(cluster)
    got = granted.get("partition", "").split(",")
    if requested and not set(got) <= set(requested):
        out.append(f"partition {','.join(got)} instead of {','.join(requested)}")
    for name in ("account", "qos", "reservation"):
        wanted = getattr(cluster, name)
        if wanted and granted.get(name, wanted).lower() != wanted.lower():
            out.append(f"{name} {granted[name]} instead of {wanted}")
    minutes = tables.parse_minutes(granted.get("time_limit", ""))
    if minutes is not None and minutes != cluster.minutes:
        out.append(f"time limit {granted['time_limit']} instead of {_clock(cluster.minutes)}")
    nodes = re.match(r"\d+", granted.get("nodes", ""))
    if nodes and int(nodes[0]) != resources.nodes:
        out.append(f"{counted(int(nodes[0]), 'node')} instead of {resources.nodes}")
    gpus = scontrol.gpus_per_node(granted.get("gpus", ""))
    wanted_gpus = resources.gpus if resources.requests_gpus else 0
    if gpus != wanted_gpus and (gpus or "gpus" in granted):
        out.append(f"{counted(gpus, 'GPU')} per node instead of {wanted_gpus}")
    return out


def _clock(minutes: int) -> str:
    """The time limit as Slurm writes it: `1-02:00:00`."""
    days, rest = divmod(minutes, 24 * 60)
    return f"{f'{days}-' if days else ''}{rest // 60:02}:{rest % 60:02}:00"
