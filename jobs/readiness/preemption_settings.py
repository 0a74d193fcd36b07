"""What happens to a run that is preempted, from Slurm's settings, and whether it has time to save.

Measured on Slurm 22.05, and tested on 25.11 and 26.05: a preempted job gets its first signal at once: USR2 with
preempt_send_user_signal, else TERM.  After GraceTime it gets TERM, and KillWait seconds later KILL.  With a GraceTime
of 0 it gets USR2 and TERM at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jobs.login.slurm_queries import SlurmSettings
from jobs.readiness.disk import format_seconds
from jobs.readiness.finding import Finding, Level

Mode = Literal["OFF", "REQUEUE", "CANCEL", "SUSPEND"]


@dataclass(frozen=True, kw_only=True)
class Preemption:
    """How the jobs of a partition are preempted."""

    mode: Mode
    source: str  # what sets it: "partition low", "QOS scavenger"
    grace: int  # seconds from the first signal until the job is ended
    kill_wait: int  # seconds from TERM to KILL when it is ended
    user_signal: bool  # whether the first signal is the job's own, USR2, and not TERM


def preemption_of(settings: SlurmSettings, partition: str, qos: Mapping[str, str]) -> Preemption:
    """The settings for a partition, and of the QOS where QOS decides (`PreemptType=preempt/qos`)."""
    config = settings.config
    default, kind = config.get("PreemptMode", "OFF"), config.get("PreemptType", "preempt/none")
    if kind == "preempt/qos":
        own = qos.get("PreemptMode", "cluster")
        mode, grace, source = default if own in {"", "cluster"} else own, qos.get("GraceTime", "0"), "QOS"
        source = f"QOS {qos['Name']}" if "Name" in qos else "the QOS of the job"
    else:
        row = settings.partitions[partition]
        tiers = [int(each.get("PriorityTier", "1")) for each in settings.partitions.values()]
        if kind == "preempt/partition_prio" and int(row.get("PriorityTier", "1")) >= max(tiers):
            default, row = "OFF", {}  # no other partition preempts it
        mode, grace, source = row.get("PreemptMode", default), row.get("GraceTime", "0"), f"partition {partition}"
    return Preemption(
        mode="OFF" if kind == "preempt/none" else _mode(mode),
        source=source,
        grace=to_seconds(grace),
        kill_wait=to_seconds(config.get("KillWait", "30")),
        user_signal="preempt_send_user_signal" in config.get("SlurmctldParameters", ""),
    )


def _mode(text: str) -> Mode:
    """`GANG,SUSPEND` -> `SUSPEND`."""
    names = text.upper()
    modes: tuple[Mode, ...] = ("SUSPEND", "REQUEUE", "CANCEL")
    return next((mode for mode in modes if mode in names), "OFF")


def to_seconds(text: str) -> int:
    """`30 sec`, `20`, `00:00:30` or `1-00:00:00` -> seconds."""
    days, _, clock = text.removesuffix(" sec").rpartition("-")
    seconds = 0
    for part in re.findall(r"\d+", clock):
        seconds = 60 * seconds + int(part)
    return seconds + 86_400 * int(days or 0)


def judge(found: Preemption, requeue: bool, save_seconds: float | None) -> Finding:
    """What it means for a run, with the estimated length of a save, if that is known."""
    if found.mode == "OFF":
        return Finding("preemption", "OK", f"jobs of {found.source} are not preempted")
    if found.mode == "SUSPEND":
        text = (
            f"jobs of {found.source} are suspended (SUSPEND): a run stops where it is, keeps its GPUs and its memory,"
        )
        return Finding("preemption", "OK", f"{text} and continues later; no step is lost, and it is no stall")
    total = found.grace + found.kill_wait
    text = f"jobs of {found.source} are preempted by {'USR2' if found.user_signal else 'TERM'}, killed {total} s later "
    text += f"(GraceTime {found.grace} s + KillWait {found.kill_wait} s)"
    if not found.grace:
        first = "USR2 and TERM" if found.user_signal else "TERM"
        text = (
            f"jobs of {found.source} are preempted by {first}, killed {total} s later (only KillWait: GraceTime is 0)"
        )
    # A run asks for a requeue after its save.  Without USR2 it does not ask once Slurm has ended its job, as `scancel`
    # does.  All four cases are tested on a real cluster.
    by_itself = found.mode == "CANCEL" and (found.user_signal or found.grace > 0)
    seconds = found.grace if by_itself and found.grace else total
    level, fits, advice = _fits(seconds, save_seconds)
    if not requeue:
        then = "and not requeued (requeue: false)"
        advice = advice or "set `requeue: true`, or submit the same command again after each preemption"
    elif found.mode == "REQUEUE":
        then = "and requeued by Slurm"
    elif by_itself:
        then = f"and not requeued by Slurm (CANCEL): a run requeues itself within {seconds} s"
    else:
        then = "and not requeued (CANCEL): the run ends there until you submit the same command again"
        advice = advice or "use a partition with PreemptMode=REQUEUE; or ask the administrators for a GraceTime"
    if level == "OK" and advice:
        level = "WARN"
    return Finding("preemption", level, f"{text}, {then}; {fits}", advice)


def _fits(seconds: int, save_seconds: float | None) -> tuple[Level, str, str]:
    """Whether a save fits into the time: level, words, and what to do."""
    if save_seconds is None:
        return "OK", "with --config, this time is compared with a save of the model", ""
    save = f"a save of this model takes about {format_seconds(save_seconds)} (estimate)"
    advice = "use a faster --runs-dir, or a partition with more GraceTime; or set a short checkpoint.every_minutes"
    if save_seconds > seconds:
        return "FAIL", f"too short: {save}, so that each preemption loses the steps since a checkpoint", advice
    if save_seconds > seconds / 2:
        return "WARN", f"just enough: {save}, if the disk is as fast as now", advice
    return "OK", f"enough: {save}", ""
