"""The tables that squeue, sinfo, sacct and sacctmgr print: the command of each, and what its rows mean."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jobs.slurm.states import NODE_FLAGS, UNUSABLE


@dataclass(frozen=True)
class QueuedJob:
    """A pending or running job."""

    state: str  # PENDING, RUNNING, COMPLETING, …
    reason: str  # why it is pending
    nodes: str
    starts: str = ""  # when it started, or may start: 2026-11-28T05:43:05; N/A: not known


@dataclass(frozen=True)
class PartitionNodes:
    """Identical nodes of a partition, as sinfo reports them."""

    partition: str
    default: bool  # whether the partition is the cluster's default
    minutes: int | None  # time limit of a job; None: no limit
    count: int
    gpus: int  # per node
    cpus: int  # per node
    memory: int  # MB per node
    gpu_types: tuple[tuple[str, int], ...] = ()  # GPUs per node of each type that has a name in Slurm


def queue(job_ids: Collection[str]) -> list[str]:
    """The command for `queued_jobs`."""
    return ["squeue", "--noheader", "--array", "--format=%i|%T|%r|%N|%S", "--jobs", ",".join(sorted(job_ids))]


def queued_jobs(lines: Sequence[str]) -> dict[str, QueuedJob]:
    """Jobs in the queue, by id; a task of an array has an id like `12_3`."""
    rows = [line.split("|") for line in lines]
    return {row[0]: QueuedJob(*row[1:]) for row in rows if len(row) == 5}


def scripts(user: int) -> list[str]:
    """The command for `job_scripts`."""
    return ["squeue", "--noheader", "--array", "--format=%i|%o", "--user", str(user)]


def job_scripts(lines: Sequence[str]) -> dict[str, str]:
    """The script of each job, by its id."""
    return dict(line.split("|", 1) for line in lines if "|" in line)


DEPENDENCIES = ("squeue", "--noheader", "--me", "--states=PENDING", "--format=%F %E")


def waiting_for(job: str, lines: Sequence[str]) -> set[str]:
    """The numbers of the jobs that wait only for this one to complete."""
    rows = [line.split(maxsplit=1) for line in lines]
    found = [(row[0], re.fullmatch(r"afterok:(\d+)(?:\(\w+\))?", row[1].strip())) for row in rows if len(row) == 2]
    return {number for number, match in found if match and match[1] == job}


PARTITION_NODES = ("sinfo", "--noheader", "--all", "--exact", "--format=%P|%l|%D|%G|%c|%m")


def partition_nodes(lines: Sequence[str]) -> list[PartitionNodes]:
    """The nodes of every partition."""
    rows = [line.split("|") for line in lines]
    return [
        PartitionNodes(
            partition=name.rstrip("*"),
            default=name.endswith("*"),
            minutes=parse_minutes(limit),
            count=int(count),
            gpus=sum(int(n) for n in re.findall(r"gpu:(?:[^:,(]+:)?(\d+)", gres)),
            cpus=int(cpus.rstrip("+")),
            memory=int(memory.rstrip("+")),
            gpu_types=tuple((kind, int(n)) for kind, n in re.findall(r"gpu:([^:,(]*[^:,(\d][^:,(]*):(\d+)", gres)),
        )
        for name, limit, count, gres, cpus, memory in (row for row in rows if len(row) == 6 and row[2].isdigit())
    ]


def states(partition: str) -> list[str]:
    """The command for `node_states`."""
    return ["sinfo", "--noheader", "--partition", partition, "--format=%D %T"]


def node_states(lines: Sequence[str]) -> Counter[str]:
    """Number of nodes in each state."""
    out = Counter[str]()
    for count, state in (row for row in map(str.split, lines) if len(row) == 2 and row[0].isdigit()):
        out[state.rstrip(NODE_FLAGS)] += int(count)
    return out


def nodes(partition: str) -> list[str]:
    """The command for `usable_nodes`."""
    return ["sinfo", "--noheader", "--Node", "--partition", partition, "--format", "%N|%T|"]


def usable_nodes(lines: Sequence[str]) -> set[str]:
    """The names of the nodes on which jobs start."""
    rows = [line.split("|") for line in lines]
    return {row[0].strip() for row in rows if len(row) == 3 and row[1].rstrip(NODE_FLAGS) not in UNUSABLE}


def accounting(entity: str, columns: Sequence[str], where: Sequence[str]) -> list[str]:
    """The command for `accounting_rows`."""
    return ["sacctmgr", "--noheader", "--parsable2", "show", entity, *where, f"format={','.join(columns)}"]


def accounting_rows(lines: Sequence[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table of the accounting database."""
    rows = [line.split("|") for line in lines]
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def final_state(job: str) -> list[str]:
    """The command for the state in which a job ended, from the accounting: `CANCELLED by 0`."""
    return ["sacct", "-nXP", "--jobs", job, "--format=State"]


def parse_minutes(limit: str) -> int | None:
    """Minutes of a limit as sinfo prints it: `2-00:00:00`, `12:00:00` or `30:00`."""
    if not re.fullmatch(r"[\d:-]+", limit):
        return None  # infinite, n/a
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return (int(days or 0) * 24 + hours) * 60 + minutes
