"""Queries Slurm: the state of jobs, the nodes of partitions, why sbatch rejected a job.  Each is one short command."""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.slurm import client, scontrol, submission, tables
from jobs.slurm.errors import CERTAIN, MISCONFIGURED, NO_CLUSTER, UNREACHABLE, first_error, is_unknown_job
from jobs.slurm.tables import PartitionNodes, QueuedJob

if TYPE_CHECKING:
    from jobs.login.cluster_config import ClusterConfig

TIMEOUT_SECONDS = 8  # of one command, if the controller does not respond
COMPLETING_SECONDS = 120  # for a canceled job to save and exit


class SlurmUnreachableError(RuntimeError):
    """Slurm's controller does not respond."""

    def __init__(self, reason: str = "") -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"Slurm does not respond{because}; try again when `scontrol ping` reports the controller as UP"
        )


class SlurmMisconfiguredError(SlurmUnreachableError):
    """Slurm is installed on this machine, but its commands cannot be used here."""

    def __init__(self, reason: str) -> None:
        file = os.environ.get("SLURM_CONF")
        where = f"SLURM_CONF is {file}" if file else "SLURM_CONF is not set"
        RuntimeError.__init__(self, f"Slurm's commands fail on this machine ({reason}); {where}: correct or unset it")


class SlurmNotFoundError(RuntimeError):
    """Slurm is not installed on this machine, or has no cluster configured."""


class NoClusterError(SlurmNotFoundError):
    """Slurm is installed on this machine, but no cluster is configured."""

    def __init__(self) -> None:
        unset = "" if os.environ.get("SLURM_CONF") else " (SLURM_CONF is not set)"
        super().__init__(f"Slurm's commands are installed, but no cluster is configured{unset}")


def queued_jobs(job_ids: Collection[str]) -> dict[str, QueuedJob]:
    """Those of the jobs that are still in the queue; a task of an array has an id like `12_3`.

    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    if not job_ids:
        return {}
    return tables.queued_jobs(lines_of(*tables.queue(job_ids), strict=True))


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
    return tables.partition_nodes(lines_of(*tables.PARTITION_NODES, strict=True))


@dataclass(frozen=True)
class SlurmSettings:
    """How a cluster is set up, in Slurm's own names and values."""

    config: dict[str, str]  # `scontrol show config`
    partitions: dict[str, dict[str, str]]  # `scontrol show partition`, by name
    nodes: list[PartitionNodes]


def slurm_settings() -> SlurmSettings:
    """The settings of the cluster and of its partitions.  Raises SlurmUnreachableError, SlurmNotFoundError."""
    return SlurmSettings(
        config=scontrol.config_of("\n".join(lines_of(*scontrol.CONFIG, strict=True))),
        partitions=scontrol.partitions_of("\n".join(lines_of(*scontrol.PARTITIONS, strict=True))),
        nodes=partition_nodes(),
    )


def accounting(entity: str, columns: Sequence[str], *where: str) -> list[dict[str, str]]:
    """Rows of `sacctmgr show`: accounting("qos", ["Name", "MaxWall"], "where", "name=normal").

    Raises SlurmUnreachableError, SlurmNotFoundError; no rows if it may not be read.
    """
    return tables.accounting_rows(lines_of(*tables.accounting(entity, columns, where)), columns)


def node_states(partition: str) -> Counter[str]:
    """Number of nodes of a partition in each state.  Raises SlurmUnreachableError, SlurmNotFoundError."""
    return tables.node_states(lines_of(*tables.states(partition)))


def find_backend(requested: str, dry_run: bool) -> tuple[str, list[PartitionNodes], str]:
    """Where to run: "slurm", "local" or "debug"; the nodes of Slurm's partitions; and a warning for the user, or "".

    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    if requested in {"local", "debug"}:
        return requested, [], ""
    try:
        return "slurm", partition_nodes(), ""
    except SlurmNotFoundError as error:
        if requested == "slurm" and not dry_run:
            raise
        if requested != "auto":
            return "slurm", [], ""
        advice = "if it is a cluster's login node, press Ctrl-C and set SLURM_CONF"
        warning = f"warning: {error}: running on this machine; {advice}" if isinstance(error, NoClusterError) else ""
        return "local", [], warning
    except SlurmUnreachableError:
        if not dry_run:
            raise
        return "slurm", [], ""


def rejection_message(output: str, cluster: "ClusterConfig") -> str:
    """One line that says why sbatch rejected a job: sbatch's error, the option that caused it, and valid values."""
    rejection = submission.rejection(output)
    reason, text = rejection.reason, rejection.text or "sbatch printed no reason"
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
                f"--{option} {value}: Slurm says {text}{valid}" if value else f"Slurm says {text}{valid} (--{option})"
            )
    return f"Slurm rejected the job: {text}"


def _values_of_user(option: str) -> str:
    """The accounts or QOS that this user may use, if the accounting database responds in time."""
    command = "user=$(id -un) && sacctmgr --noheader --parsable2 show associations user=$user format="
    try:
        lines = lines_of("sh", "-c", command + option)
    except (SlurmUnreachableError, SlurmNotFoundError):
        lines = []
    found = ", ".join(sorted({name for line in lines for name in line.split(",") if name}))
    return f"; yours: {found}" if found else "; you have none on this cluster: ask its administrators"


def show_job(job: str) -> dict[str, str] | None:
    """The fields of a job, or of the first task of an array, by `scontrol show job`; None if Slurm does not know it.

    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    done = _run(*scontrol.JOB, job)
    if is_unknown_job(done.stdout, done.stderr):
        return None
    _raise_if_failed(done, strict=True)
    return next((row for row in map(scontrol.facts_of, done.stdout.splitlines()) if "JobState" in row), {})


def lines_of(*command: str, strict: bool = False) -> list[str]:
    """Lines printed by one of Slurm's commands; none if it does not know the job.

    If it is `strict`, any other error counts as no answer, so that a job is not taken for one that has ended.
    Raises SlurmUnreachableError, SlurmNotFoundError.
    """
    done = _run(*command)
    _raise_if_failed(done, strict)
    return done.stdout.splitlines()


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        done = subprocess.run(
            command, env=client.environment(), capture_output=True, text=True, errors="replace",
            timeout=TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmNotFoundError(f"Slurm is not installed on this machine: {command[0]} was not found") from None
    except OSError as error:
        raise SlurmMisconfiguredError(f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired as late:
        printed = (late.stderr or b"").decode(errors="replace")
        if MISCONFIGURED.search(printed):
            raise SlurmMisconfiguredError(first_error(printed)) from None
        raise SlurmUnreachableError(first_error(printed)) from None
    if NO_CLUSTER in done.stderr:
        raise NoClusterError
    return done


def _raise_if_failed(done: "subprocess.CompletedProcess[str]", strict: bool) -> None:
    if not done.returncode and not CERTAIN.search(done.stderr):
        return
    if UNREACHABLE.search(done.stderr):
        raise SlurmUnreachableError
    reason = first_error(done.stderr)
    if MISCONFIGURED.search(done.stderr):
        raise SlurmMisconfiguredError(reason)
    if strict and reason and not is_unknown_job(done.stdout, done.stderr):
        raise SlurmUnreachableError(reason)
