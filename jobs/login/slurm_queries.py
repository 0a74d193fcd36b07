"""What Slurm says: which jobs it has, which partitions, and why it took no job.  Each is one short call."""

import re
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.login.cluster_config import ClusterConfig

PATIENCE_SECONDS = 8  # with a controller that does not answer
ENDING_SECONDS = 120  # for a canceled job to save and leave
SILENT = re.compile(r"unable to contact|connect(ion)? (failure|refused)|timed out|not responding|socket timed", re.I)
UNCONFIGURED = "configuration source"  # what Slurm's tools say that were installed without a cluster


class SilentError(RuntimeError):
    """Slurm does not answer."""

    def __init__(self) -> None:
        super().__init__("Slurm does not answer; `scontrol ping` says when it does again")


class NoSlurmError(RuntimeError):
    """There is no Slurm on this machine."""


@dataclass(frozen=True)
class Queued:
    """A job that Slurm has waiting or running."""

    state: str  # PENDING, RUNNING, COMPLETING, …
    reason: str  # why it waits
    nodes: str


@dataclass(frozen=True)
class Offer:
    """Nodes of a partition that are alike."""

    partition: str
    default: bool
    minutes: int | None  # limit of a job; None: there is none
    count: int
    gpus: int
    cpus: int
    memory: int  # MB


def jobs(numbers: Collection[str]) -> dict[str, Queued]:
    """Those jobs that Slurm still has, tasks of arrays as `12_3`.  Raises SilentError, NoSlurmError."""
    if not numbers:
        return {}
    lines = _ask("squeue", "--noheader", "--array", "--format=%i|%T|%r|%N", "--jobs", ",".join(sorted(numbers)))
    rows = [line.split("|") for line in lines]
    return {row[0]: Queued(*row[1:]) for row in rows if len(row) == 4}


def going(numbers: Collection[str]) -> dict[str, Queued]:
    """As `jobs`, once those that are ending just now have ended, or wait again: scancel, and then the same command."""
    deadline, told = time.monotonic() + ENDING_SECONDS, False
    while True:
        found = jobs(numbers)
        ending = sorted(number for number, job in found.items() if job.state == "COMPLETING")
        if not ending or time.monotonic() > deadline:
            return found
        if not told:
            print(f"waiting for the end of job {', '.join(ending)}", flush=True)
        told = True
        time.sleep(0.5)


def offers() -> list[Offer]:
    """What each partition has.  Raises SilentError, NoSlurmError."""
    rows = [line.split("|") for line in _ask("sinfo", "--noheader", "--all", "--exact", "--format=%P|%l|%D|%G|%c|%m")]
    return [
        Offer(
            partition=name.rstrip("*"),
            default=name.endswith("*"),
            minutes=_minutes(limit),
            count=int(count),
            gpus=sum(int(n) for n in re.findall(r"gpu:(?:[^:,(]+:)?(\d+)", gres)),
            cpus=int(cpus.rstrip("+")),
            memory=int(memory.rstrip("+")),
        )
        for name, limit, count, gres, cpus, memory in (row for row in rows if len(row) == 6)
    ]


def refusal(said: str, cluster: "ClusterConfig") -> str:
    """Why sbatch took no job, in one line, with the flag that asked for it and what this user may name instead."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("Try ")]
    why = (lines or ["sbatch said nothing"])[-1].removeprefix("sbatch: ").removeprefix("error: ")
    why = why.removeprefix("Batch job submission failed: ")
    if SILENT.search(why):
        return str(SilentError())
    for word, flag in (
        ("account", "account"),
        ("qos", "qos"),
        ("reservation", "reservation"),
        ("feature", "constraint"),
    ):
        if word in why.lower():
            named = getattr(cluster, flag)
            more = _yours(flag) if flag in {"account", "qos"} else ""
            return f"--{flag} {named}: Slurm says {why}{more}" if named else f"Slurm says {why}{more} (--{flag})"
    return f"Slurm took no job: {why}"


def _yours(what: str) -> str:
    """The accounts or qos of this user, as far as the accounting says it soon."""
    command = "user=$(id -un) && sacctmgr --noheader --parsable2 show associations user=$user format="
    try:
        lines = _ask("sh", "-c", command + what)
    except (SilentError, NoSlurmError):
        lines = []
    found = ", ".join(sorted({name for line in lines for name in line.split(",") if name}))
    return f"; yours: {found}" if found else "; you have none here: ask those who run the cluster"


def _ask(*command: str) -> list[str]:
    """The lines that a command of Slurm's prints; none where it knows no such job."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except FileNotFoundError:
        raise NoSlurmError(f"there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise SilentError from None
    if UNCONFIGURED in done.stderr:
        raise NoSlurmError("Slurm's commands are here, but they know of no cluster")
    if done.returncode and SILENT.search(done.stderr):
        raise SilentError
    return done.stdout.splitlines()


def _minutes(limit: str) -> int | None:
    """Minutes of `2-00:00:00`, `12:00:00` or `30:00`, as sinfo writes them."""
    if not re.fullmatch(r"[\d:-]+", limit):
        return None  # infinite, n/a
    days, _, rest = limit.rpartition("-")
    parts: Sequence[int] = [int(part) for part in rest.split(":")]
    hours, minutes = (parts[0], parts[1]) if len(parts) == 3 else (0, parts[0])
    return (int(days or 0) * 24 + hours) * 60 + minutes
