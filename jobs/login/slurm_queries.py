"""Queries Slurm: the state of jobs, the nodes of partitions, why sbatch rejected a job.  Each is one short command."""

import re
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.login.cluster_config import ClusterConfig

TIMEOUT_SECONDS = 8  # of one command, if the controller does not respond
COMPLETING_SECONDS = 120  # for a canceled job to save and exit
UNREACHABLE = re.compile(
    r"unable to contact|connect(ion)? (failure|refused)|timed out|not responding|socket timed", re.I
)
NO_CLUSTER = "configuration source"  # in the error of Slurm's commands when no cluster is configured


class SlurmUnreachableError(RuntimeError):
    """Slurm's controller does not respond."""

    def __init__(self) -> None:
        super().__init__("Slurm does not respond; try again when `scontrol ping` reports the controller as UP")


class SlurmNotFoundError(RuntimeError):
    """Slurm is not installed on this machine, or has no cluster configured."""


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


def queued_jobs(job_ids: Collection[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that are still in the queue; a task of an array has an id like `12_3`.

    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    if not job_ids:
        return {}
    lines = lines_of("squeue", "--noheader", "--array", "--format=%i|%T|%r|%N|%S", "--jobs", ",".join(sorted(job_ids)))
    rows = [line.split("|") for line in lines]
    return {row[0]: QueuedJob(*row[1:]) for row in rows if len(row) == 5}


def wait_for_completing(job_ids: Collection[str]) -> dict[str, QueuedJob]:
    """Like `queued_jobs`, but waits until completing jobs have ended or are pending again.

    This allows `scancel` followed at once by the command that resumes the run.
    """
    deadline, printed = time.monotonic() + COMPLETING_SECONDS, False
    while True:
        found = queued_jobs(job_ids)
        completing = sorted(job_id for job_id, job in found.items() if job.state == "COMPLETING")
        if not completing or time.monotonic() > deadline:
            return found
        if not printed:
            print(f"waiting for job {', '.join(completing)} to end", flush=True)
        printed = True
        time.sleep(0.5)


def partition_nodes() -> list[PartitionNodes]:
    """The nodes of every partition.  Raises SlurmUnreachableError, SlurmNotFoundError."""
    rows = [
        line.split("|") for line in lines_of("sinfo", "--noheader", "--all", "--exact", "--format=%P|%l|%D|%G|%c|%m")
    ]
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
        for name, limit, count, gres, cpus, memory in (row for row in rows if len(row) == 6)
    ]


@dataclass(frozen=True)
class SlurmSettings:
    """How a cluster is set up, in Slurm's own names and values."""

    config: dict[str, str]  # `scontrol show config`
    partitions: dict[str, dict[str, str]]  # `scontrol show partition`, by name
    nodes: list[PartitionNodes]


def slurm_settings() -> SlurmSettings:
    """The settings of the cluster and of its partitions.  Raises SlurmUnreachableError, SlurmNotFoundError."""
    pairs = (re.fullmatch(r"(\w+) *= ?(.*)", line) for line in lines_of("scontrol", "show", "config"))
    rows = [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in lines_of("scontrol", "--oneliner", "show", "partition")
    ]
    return SlurmSettings(
        config={pair[1]: pair[2].strip() for pair in pairs if pair},
        partitions={row["PartitionName"]: row for row in rows if "PartitionName" in row},
        nodes=partition_nodes(),
    )


def accounting(entity: str, columns: Sequence[str], *where: str) -> list[dict[str, str]]:
    """Rows of `sacctmgr show`: accounting("qos", ["Name", "MaxWall"], "where", "name=normal").

    Raises SlurmUnreachableError, SlurmNotFoundError; no rows if it may not be read.
    """
    command = ["sacctmgr", "--noheader", "--parsable2", "show", entity, *where, f"format={','.join(columns)}"]
    rows = [line.split("|") for line in lines_of(*command)]
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def node_states(partition: str) -> Counter[str]:
    """Number of nodes of a partition in each state.  Raises SlurmUnreachableError, SlurmNotFoundError."""
    rows = [line.split() for line in lines_of("sinfo", "--noheader", "--partition", partition, "--format=%D %T")]
    out = Counter[str]()
    for count, state in (row for row in rows if len(row) == 2):
        out[state.rstrip("*~#!%$@^-")] += int(count)
    return out


def find_backend(requested: str, dry_run: bool) -> tuple[str, list[PartitionNodes]]:
    """Where to run: "slurm", "local" or "debug"; and the nodes of Slurm's partitions.

    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    if requested in {"local", "debug"}:
        return requested, []
    try:
        return "slurm", partition_nodes()
    except SlurmNotFoundError:
        if requested == "slurm" and not dry_run:
            raise
        return "local" if requested == "auto" else "slurm", []
    except SlurmUnreachableError:
        if not dry_run:
            raise
        return "slurm", []


def rejection_message(output: str, cluster: "ClusterConfig") -> str:
    """One line that says why sbatch rejected a job: sbatch's error, the option that caused it, and valid values."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("Try ")]
    reason = (lines or ["sbatch printed no reason"])[-1].removeprefix("sbatch: ").removeprefix("error: ")
    reason = reason.removeprefix("Batch job submission failed: ")
    if UNREACHABLE.search(reason):
        return str(SlurmUnreachableError())
    for word, option in (
        ("account", "account"),
        ("qos", "qos"),
        ("reservation", "reservation"),
        ("feature", "constraint"),
    ):
        if word in reason.lower():
            value = getattr(cluster, option)
            valid = _values_of_user(option) if option in {"account", "qos"} else ""
            return (
                f"--{option} {value}: Slurm says {reason}{valid}"
                if value
                else f"Slurm says {reason}{valid} (--{option})"
            )
    return f"Slurm rejected the job: {reason}"


def _values_of_user(option: str) -> str:
    """The accounts or QOS that this user may use, if the accounting database responds in time."""
    command = "user=$(id -un) && sacctmgr --noheader --parsable2 show associations user=$user format="
    try:
        lines = lines_of("sh", "-c", command + option)
    except (SlurmUnreachableError, SlurmNotFoundError):
        lines = []
    found = ", ".join(sorted({name for line in lines for name in line.split(",") if name}))
    return f"; yours: {found}" if found else "; you have none on this cluster: ask its administrators"


def lines_of(*command: str) -> list[str]:
    """Lines printed by one of Slurm's commands; none if it does not know the job.

    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except FileNotFoundError:
        raise SlurmNotFoundError(f"Slurm is not installed on this machine: {command[0]} was not found") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnreachableError from None
    if NO_CLUSTER in done.stderr:
        raise SlurmNotFoundError("Slurm's commands are installed, but no cluster is configured")
    if done.returncode and UNREACHABLE.search(done.stderr):
        raise SlurmUnreachableError
    return done.stdout.splitlines()


def parse_minutes(limit: str) -> int | None:
    """Minutes of a limit as sinfo prints it: `2-00:00:00`, `12:00:00` or `30:00`."""
    if not re.fullmatch(r"[\d:-]+", limit):
        return None  # infinite, n/a
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return (int(days or 0) * 24 + hours) * 60 + minutes
