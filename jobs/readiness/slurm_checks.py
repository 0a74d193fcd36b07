"""Checks Slurm's settings that matter to a run: partition, time limit, preemption, requeue, limits of the account."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs.login.resources import partitions
from jobs.login.run_folder import shared_folder_warning
from jobs.login.slurm_queries import SlurmNotFoundError, SlurmSettings, SlurmUnreachableError, node_states
from jobs.readiness.account_limits import NoAccessError, check_limits, find_account
from jobs.readiness.finding import Finding
from jobs.readiness.preemption_settings import judge, preemption_of
from jobs.readiness.request import Request
from jobs.readiness.run_config import failed
from jobs.slurm import version as slurm_version
from jobs.slurm.scontrol import credential_seconds, has_accounting
from jobs.slurm.states import UNUSABLE
from vit.config.user_error import UserError
from vit.run.hints import command

SIGNAL_EARLY_SECONDS = 60  # Slurm may send USR2 so much earlier than --signal says


def check_slurm(request: Request) -> Iterator[Finding]:
    """Everything that Slurm tells about the request."""
    settings = request.slurm
    if settings is None:
        yield _without_slurm(request)
        return
    config = settings.config
    yield _version(config)
    if not (request.cluster.container or request.cluster.python):
        yield _python_on_nodes()
    try:
        request.resources().check(settings.nodes)
    except UserError as error:
        yield failed("request", error)
    names = _partitions(request, settings)
    if not names:
        advice = f"use --partition: {', '.join(sorted(settings.partitions))}"
        yield Finding("partition", "FAIL", "this cluster has no default partition", advice)
    for name in names:
        yield from _check_partition(request, settings, name)
    yield _time_limit(request)
    yield _requeue(request, config)


def _version(config: Mapping[str, str]) -> Finding:
    version = config.get("SLURM_VERSION", "?")
    text = f"{version}, cluster {config.get('ClusterName', '?')}"
    if remark := slurm_version.remark(version):
        advice = f"`{command('jobs/doctor.py')} --submit --preempt` measures what it does"
        return Finding("Slurm", "WARN", f"{text}: {remark}", advice)
    return Finding("Slurm", "OK", text)


def _without_slurm(request: Request) -> Finding:
    if request.slurm_error:
        what, _, advice = request.slurm_error.partition("; ")
        return Finding("Slurm", "FAIL", f"{what}: nothing can be submitted, and its settings are not known", advice)
    text = request.no_slurm
    if request.requests_slurm:
        return Finding("Slurm", "FAIL", f"{text}, but the options request it", "run this on a login node")
    advice = "on a cluster: use a login node" if "SLURM_CONF" not in text else "on a login node: set SLURM_CONF"
    return Finding("Slurm", "WARN", f"{text}: runs are executed on this machine", advice)


def _python_on_nodes() -> Finding:
    """The jobs run this interpreter, so that its folder must be on a disk that all nodes share."""
    if warning := shared_folder_warning(Path(sys.prefix)):
        what = warning.partition(";")[0]
        advice = "install it on a disk that all nodes share, or set `python` or `container` in the cluster file"
        return Finding("environment", "WARN", f"{what}: jobs run this Python, so that their nodes need it too", advice)
    return Finding("environment", "OK", f"{sys.prefix} is not on a local disk: jobs run this Python")


def _partitions(request: Request, settings: SlurmSettings) -> list[str]:
    """The requested partitions that exist, or the default one."""
    requested = partitions(request.cluster)
    default = [name for name, row in settings.partitions.items() if row.get("Default") == "YES"]
    return [name for name in requested if name in settings.partitions] if requested else default


def _check_partition(request: Request, settings: SlurmSettings, name: str) -> Iterator[Finding]:
    row = settings.partitions[name]
    if (state := row.get("State", "UP")) != "UP":
        what = "it accepts no jobs" if state in {"DRAIN", "INACTIVE"} else "its jobs do not start"
        yield Finding("partition", "FAIL", f"partition {name} is {state}: {what}", "use another --partition")
    else:
        yield _nodes(request, name)
    qos: Mapping[str, str] = {}
    try:
        if not has_accounting(settings.config):
            yield Finding("limits", "OK", "this cluster has no accounting, so no limits of accounts")
        else:
            account = find_account(request, row)
            qos = account.qos_row
            yield from _access(row, account.name, account.qos)
            yield from check_limits(request, settings.config, account)
    except NoAccessError as error:
        if "associations" in settings.config.get("AccountingStorageEnforce", ""):
            yield failed("limits", error)
    except (SlurmUnreachableError, SlurmNotFoundError):
        text = "the accounting database (sacctmgr) does not respond: limits of account and QOS are not known"
        yield Finding("limits", "WARN", text, "try again later; a submission would tell whether a limit is exceeded")
    yield judge(preemption_of(settings, name, qos), request.cluster.requeue, request.save_seconds)


def _nodes(request: Request, name: str) -> Finding:
    states = node_states(name)
    usable = sum(count for state, count in states.items() if state not in UNUSABLE)
    listed = ", ".join(f"{count} {state}" for state, count in states.most_common())
    text, nodes = f"{name} is up; its nodes: {listed or 'none'}", request.size.nodes
    if usable < nodes:
        text = f"only {usable} of the nodes of {name} can be used ({listed}), but the job requests {nodes}: it waits"
        return Finding("partition", "WARN", text, "use another --partition, or ask when the nodes return (`sinfo -R`)")
    return Finding("partition", "OK", text)


def _access(row: Mapping[str, str], account: str, qos: str) -> Iterator[Finding]:
    """A finding if the partition does not accept the account or the QOS."""
    for name, used in (("Accounts", account), ("Qos", qos)):
        allowed, denied = row.get(f"Allow{name}", "ALL"), row.get(f"Deny{name}", "")
        refused = (allowed != "ALL" and used not in allowed.split(",")) or used in denied.split(",")
        if used and refused:
            option = "--account" if name == "Accounts" else "--qos"
            text = f"partition {row['PartitionName']} does not accept {option[2:]} {used}"
            only = f": {allowed}" if allowed != "ALL" else ""
            yield Finding("access", "FAIL", text, f"use another {option}{only}, or another --partition")


def _time_limit(request: Request) -> Finding:
    cluster = request.cluster
    seconds, before = 60 * cluster.minutes, cluster.signal_seconds + SIGNAL_EARLY_SECONDS
    text = f"{cluster.time} a job; {cluster.signal_seconds} s before, USR2 makes the run save and requeue itself"
    advice = "use a longer --time, or a smaller number in --signal"
    if before >= seconds:
        return Finding("time limit", "FAIL", f"{text}: it may come as soon as the job starts", advice)
    if before > seconds / 4:
        share = f"{100 * before / seconds:.0f} %"
        return Finding("time limit", "WARN", f"{text}: up to {share} of each job's time is not used", advice)
    return Finding("time limit", "OK", text)


def _requeue(request: Request, config: Mapping[str, str]) -> Finding:
    if not request.cluster.requeue:
        text = "requeue: false: at its time limit, after preemption and after failures the run ends"
        return Finding("requeue", "WARN", text, "set `requeue: true`, or submit the same command again each time")
    seconds = credential_seconds(config)
    own = "jobs ask for it themselves" if config.get("JobRequeue") == "0" else "allowed"
    return Finding(
        "requeue",
        "OK",
        f"{own}; a requeued job waits {seconds} s (cred_expire), a restart in place after a failure none",
    )
