"""Limits of account and QOS that the job would exceed, from Slurm's accounting database."""

import os
import pwd
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jobs.login.resources import megabytes
from jobs.login.slurm_queries import accounting
from jobs.readiness.finding import Finding
from jobs.readiness.request import Request
from jobs.slurm.tables import parse_minutes

Row = Mapping[str, str]

# sacctmgr's columns with limits of resources, and of whom they are.
_RESOURCES = {"MaxTRES": "a job", "MaxTRESPerUser": "a user", "MaxTRESPerAccount": "an account", "GrpTRES": "all jobs"}
ASSOCIATION = ("Account", "User", "Partition", "QOS", "DefaultQOS", "MaxWall", "MaxTRES", "GrpTRES")
QOS = ("Name", "MaxWall", "MaxTRES", "MaxTRESPerUser", "MaxTRESPerAccount", "GrpTRES", "GraceTime", "PreemptMode")


@dataclass(frozen=True)
class Account:
    """The account and the QOS that the job would use, and all rows with limits that apply to it."""

    name: str
    qos: str
    limits: list[tuple[str, Row]]  # whose limits: "account vision", "QOS normal"
    qos_row: Row  # of the QOS of the job; empty if it is not known


class NoAccessError(ValueError):
    """The user may not use the account or the QOS; the message has both, and what to do."""


def find_account(request: Request, partition: Row) -> Account:
    """Reads the accounting database.  Raises NoAccessError, SlurmUnreachableError, SlurmNotFoundError."""
    user = pwd.getpwuid(os.getuid()).pw_name
    rows = accounting("associations", ASSOCIATION, "where", f"user={user}")
    default = "".join(row["DefaultAccount"] for row in accounting("user", ["DefaultAccount"], "where", f"name={user}"))
    name = request.cluster.account or os.environ.get("SBATCH_ACCOUNT", "") or default
    names = sorted({row["Account"] for row in rows})
    mine = [row for row in rows if row["Account"] == name and row["Partition"] in {"", partition["PartitionName"]}]
    if not mine:
        yours = f"yours are {', '.join(names)}" if names else "you have none: ask the administrators"
        raise NoAccessError(f"you may not use the account {name or '(none)'}; use another --account; {yours}")
    allowed = [qos for qos in mine[0]["QOS"].split(",") if qos]
    qos = request.cluster.qos or os.environ.get("SBATCH_QOS", "") or mine[0]["DefaultQOS"]
    qos = qos or (allowed[0] if len(allowed) == 1 else "normal" if "normal" in allowed else "")
    if qos and qos not in allowed:
        raise NoAccessError(f"you may not use the QOS {qos} with account {name}; use --qos {' or '.join(allowed)}")
    every = {row["Name"]: row for row in accounting("qos", QOS)}
    limits: list[tuple[str, Row]] = [(f"account {name}", row) for row in mine]
    limits += [(f"account {name}", row) for row in accounting("associations", ASSOCIATION, "where", f"account={name}")
               if not row["User"]]  # fmt: skip
    limits += [(f"QOS {q}", every[q]) for q in dict.fromkeys([qos, partition.get("QoS", "")]) if q in every]
    return Account(name, qos, limits, every.get(qos, {}))


def check_limits(request: Request, config: Row, account: Account) -> Iterator[Finding]:
    """One finding for each limit that the job exceeds."""
    enforced = config.get("AccountingStorageEnforce", "none")
    name = f"account {account.name}, QOS {account.qos}" if account.qos else f"account {account.name}"
    if not re.search("limits|safe", enforced):
        yield Finding("limits", "OK", f"{name}; this cluster enforces no limits (AccountingStorageEnforce={enforced})")
        return
    needed = requested(request)
    exceeded = list(dict.fromkeys(text for whose, row in account.limits for text in excesses(whose, row, needed)))
    minutes = request.cluster.minutes
    for whose, row in account.limits:
        most = parse_minutes(row["MaxWall"]) if row["MaxWall"] else None
        if most is not None and minutes > most:
            exceeded.append(f"{whose} allows jobs of {row['MaxWall']} (MaxWall), not of {minutes} minutes")
    for text in exceeded:
        advice = "request less, or use another --qos or --account; the job would be rejected, or wait forever"
        yield Finding("limits", "FAIL", text, advice)
    if not exceeded:
        yield Finding("limits", "OK", f"{name}: no limit is below what the job requests ({describe(needed)})")


def requested(request: Request) -> dict[str, int]:
    """What the job requests, in Slurm's names of resources."""
    resources, nodes = request.resources(), request.size.nodes
    out = {"node": nodes, "cpu": nodes * resources.cpus}
    if resources.requests_gpus:
        for name in {"gres/gpu", f"gres/{request.cluster.gres or 'gpu'}"}:
            out[name] = nodes * resources.gpus
    if request.cluster.mem not in {"", "0"}:
        out["mem"] = nodes * megabytes(request.cluster.mem)
    return out


def describe(needed: Mapping[str, int]) -> str:
    """`node=1,cpu=32,gres/gpu=4`."""
    return ",".join(f"{name}={count}{'M' if name == 'mem' else ''}" for name, count in needed.items())


def excesses(whose: str, row: Row, needed: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each limit of resources that is exceeded."""
    for column, of in _RESOURCES.items():
        for name, value in re.findall(r"([\w/:]+)=(\d+[KMGT]?)", row.get(column, "")):
            most = megabytes(value) if name == "mem" else int(re.sub(r"\D", "", value))
            if needed.get(name, 0) > most:
                yield f"{whose} allows {name}={value} for {of} ({column}), but the job requests {needed[name]}"
