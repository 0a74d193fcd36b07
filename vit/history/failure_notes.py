"""Notes on what failed in a run.  Imports no torch."""

import re
from collections import Counter
from collections.abc import Callable

from vit.history.device_changes import device_changes
from vit.history.learning_curve import integer, number
from vit.history.run_history import RunHistory
from vit.history.settings import setting
from vit.history.wrong_arithmetic import known_findings
from vit.run.counts import counted
from vit.run.folder import Event
from vit.run.hints import command
from vit.run.progress import format_duration

DECISIONS = ("restarting in place", "requeueing", "gave up")  # recorded once for each failure


def failing_node(history: RunHistory) -> str | None:
    """Most failures on one of several nodes."""
    nodes = Counter(str(e["node"]) for e in _failures(history) if e.get("node"))
    total = nodes.total()
    name, failures = nodes.most_common(1)[0] if nodes else ("", 0)
    others = {a.node for a in history.attempts if a.node} | set(nodes)
    if failures < 3 or failures < 2 / 3 * total or len(others) < 2:
        return None
    return f"{failures} of {total} failures were on {name}: exclude {name}, and tell the cluster's administrators"


def other_devices(history: RunHistory) -> str | None:
    """Steps of several kinds of devices."""
    changes = device_changes(history.events)
    if not changes or setting(history.settings, "exact") != "bits":
        return None
    return f"{'; '.join(map(str, changes))}: the same bits are only computed by one kind of GPU (--gpus TYPE:N)"


def wrong_values(history: RunHistory) -> str | None:
    """Ranks that computed other values than the others."""
    found = known_findings(history.events)
    if not found:
        return None
    by_place: dict[str, list[str]] = {}
    for event in found:
        places = dict.fromkeys(f"{each.get('gpu') or 'a CPU'} of {each['node']}" for each in event["suspects"])
        place = (" and " if event.get("settled") else " or ").join(places)
        by_place.setdefault(place, []).append(f"{event.get('what')} of step {event['step']:,}")
    wrong = "; ".join(f"{place} computed wrong values ({', '.join(what)})" for place, what in by_place.items())
    nodes = ", ".join(sorted({str(each["node"]) for event in found for each in event["suspects"]}))
    return f"{wrong}: exclude {nodes}, and tell the cluster's administrators"


def killed_ranks(history: RunHistory) -> str | None:
    """Ranks that were killed: often the memory of the node is full."""
    killed = sum("SIGKILL" in str(event.get("reason", "")) for event in _failures(history))
    if killed < 2 or failing_node(history):
        return None
    return f"{killed} failures by SIGKILL: if nobody killed the ranks, the node's memory was full: request more mem"


def stalls(history: RunHistory) -> str | None:
    """Ranks that stopped without an error."""
    found = [event for event in _failures(history) if event.get("kind") == "stalled"]
    if len(found) < 2:
        return None
    phases = Counter(m[1] for e in found if (m := re.search(r"in phase '(\w+)'", str(e.get("reason", "")))))
    where = f", most in phase {phases.most_common(1)[0][0]!r}" if phases else ""
    return f"{len(found)} stalls{where}: logs/rank-N.stacks shows what the ranks waited for"


def late_stops(history: RunHistory) -> str | None:
    """Stops that left too little time to save."""
    late = [a for a in history.attempts if a.why.startswith("told to stop, but killed")]
    if not late:
        return None
    stops, steps = counted(len(late), "stop"), counted(sum(a.lost_steps for a in late), "step")
    measure = command("jobs/doctor.py", "--preempt")
    return f"{stops} came too late to save ({steps} repeated): `{measure}` measures the grace time"


def suspensions(history: RunHistory) -> str | None:
    """Times in which a job kept its nodes and did not run."""
    found = [number(event, "seconds") or 0.0 for event in history.events if event["event"] == "suspended"]
    if not found:
        return None
    times = f"{counted(len(found), 'suspension')} by Slurm or by hand took {format_duration(sum(found))}"
    return f"{times}: it counts as time of the phase in which the run was"


def failed_saves(history: RunHistory) -> str | None:
    """Checkpoints that could not be written."""
    failed = [event for event in history.events if event["event"] == "checkpoint failed"]
    if not failed:
        return None
    error = (str(failed[-1].get("error", "")).splitlines() or [""])[0]
    return f"{counted(len(failed), 'checkpoint')} could not be saved ({error}): check the quota and the free space"


def damaged_checkpoints(history: RunHistory) -> str | None:
    """Checkpoints whose checksums did not hold."""
    damaged = sum(event["event"] == "damaged checkpoint" for event in history.events)
    if not damaged:
        return None
    return f"{counted(damaged, 'checkpoint')} found damaged and set aside: tell the administrators of the file system"


def damaged_samples(history: RunHistory) -> str | None:
    """Images that could not be decoded."""
    found = {str(event.get("problem")) for event in history.events if event["event"] == "damaged sample"}
    if not found:
        return None
    return f"{counted(len(found), 'damaged image')} in the data set, see ledger.jsonl: write the file again"


def skipped_steps(history: RunHistory) -> str | None:
    """Steps whose loss or gradient was not finite."""
    steps = {integer(event, "step") for event in history.events if event["event"] == "skipped"} - {None}
    if not steps:
        return None
    allowed = setting(history.settings, "optim.max_skipped")
    limit = f"of {allowed} that are allowed (optim.max_skipped)"
    clip = "" if setting(history.settings, "optim.clip_norm") else ", or set optim.clip_norm 1"
    return f"{counted(len(steps), 'step')} skipped as not finite, {limit}: lower optim.lr{clip}"


FAILURE_NOTES: tuple[Callable[[RunHistory], str | None], ...] = (
    wrong_values, failing_node, killed_ranks, stalls, late_stops, suspensions, failed_saves, damaged_checkpoints,
    damaged_samples, skipped_steps, other_devices,
)  # fmt: skip


def _failures(history: RunHistory) -> list[Event]:
    return [event for event in history.events if event["event"] in DECISIONS and event.get("kind") != "user"]
