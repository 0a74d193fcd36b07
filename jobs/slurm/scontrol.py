"""What `scontrol show` prints of jobs, partitions and the configuration."""

import re
from collections.abc import Mapping
from datetime import datetime

CREDENTIAL_SECONDS = 120  # Slurm's default of cred_expire

JOB = ("scontrol", "--oneliner", "show", "job")  # and the job's id
PARTITIONS = ("scontrol", "--oneliner", "show", "partition")
CONFIG = ("scontrol", "show", "config")


# The name of a job may have anything in it; the next field is its user.
WITHOUT_WORDS = "sed 's/ Command=.*//; s/.* UserId=//'"  # the same in shell: only fields between those
_BEGIN = re.compile(r"^(?=JobId=|PartitionName=)", re.M)
_NAME = re.compile(r" JobName=(.*?)(?= UserId=\S+ GroupId=)", re.S)


def facts_of(text: str) -> dict[str, str]:
    """The fields of the first job or partition, as `scontrol --oneliner` prints them, each up to its first space.

    The user's own words cannot be mistaken for fields: those of the name are skipped, and those of the comment and of
    the command line (`SubmitLine`, since Slurm 25.05) come after all other fields, of which the first one counts.
    A wrapper of the site may print other lines before and after it.  Empty if no job or partition is in the text.
    """
    if (begin := _BEGIN.search(text)) is None:
        return {}
    text = text[begin.end() :].strip().partition("\nJobId=")[0]
    name = _NAME.search(text)
    out = {"JobName": name[1]} if name else {}
    for word in _NAME.sub("", text, count=1).split():
        key, equals, value = word.partition("=")
        if equals:
            out.setdefault(key, value)
    return out


def partitions_of(text: str) -> dict[str, dict[str, str]]:
    """The fields of each partition, by its name."""
    rows = [facts_of(line) for line in text.splitlines()]
    return {row["PartitionName"]: row for row in rows if "PartitionName" in row}


def config_of(text: str) -> dict[str, str]:
    """Slurm's settings."""
    pairs = (re.fullmatch(r"(\w+) *= ?(.*)", line) for line in text.splitlines())
    return {pair[1]: pair[2].strip() for pair in pairs if pair}


def credential_seconds(config: Mapping[str, str]) -> int:
    """How long a requeued job must wait, because its last credential is still valid; a setting of the cluster."""
    found = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    return int(found[1]) if found else CREDENTIAL_SECONDS


def eligible_time(facts: Mapping[str, str]) -> datetime | None:
    """When a pending job may start at the earliest; None if Slurm does not say, or in words of SLURM_TIME_FORMAT."""
    try:
        return datetime.fromisoformat(facts.get("EligibleTime", ""))
    except ValueError:  # "Unknown"
        return None


def excluded_nodes(facts: Mapping[str, str]) -> list[str]:
    """The nodes that a job excludes, as Slurm writes them: `n[1-3]`."""
    return [] if facts.get("ExcNodeList") in {None, "(null)"} else [facts["ExcNodeList"]]


def has_accounting(config: Mapping[str, str]) -> bool:
    """Whether the cluster stores accounts and their limits: not with `accounting_storage/none`, later `(null)`."""
    return not config.get("AccountingStorageType", "").endswith(("none", "(null)"))


def gpus_per_node(tres: str) -> int:
    """The GPUs in `TresPerNode`: `gres:gpu:a100:2` in Slurm 22.05, `gres/gpu:a100:2` since 23.11."""
    return sum(int(n) for n in re.findall(r"gpu(?::[^:,=()]*[^:,=()\d][^:,=()]*)?[:=](\d+)", tres))


def largest_array(config: Mapping[str, str]) -> int | None:
    """The most tasks of one job array; None if the settings do not say."""
    limits = [
        config.get("MaxArraySize", ""),
        *re.findall(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", "")),
    ]
    return min((int(limit) for limit in limits if limit.isdigit()), default=None)
