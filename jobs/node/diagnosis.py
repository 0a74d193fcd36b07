"""Root cause of failed ranks on this node, from exit codes, the errors they recorded and what the watchdog saw."""

import os
import re
import signal
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from jobs.node import slurm_job
from jobs.node.restart_policy import Failure, Kind
from jobs.node.watchdog import Watchdog, current_step
from vit.history.wrong_arithmetic import left_out
from vit.run.folder import RunFolder

USER_ERROR = 2  # exit code of a rank for an error that only the user can fix
# Errors by which gloo, NCCL or the store report that another rank is gone.
PEER_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|Dist(Network|Store|Backend)Error", re.I
)


def diagnose(folder: RunFolder, error: ChildFailedError, watchdog: Watchdog, started: float) -> Failure:
    """The root cause on this node in the attempt that began at `started` (time.time())."""
    if found := _finding(folder, error, watchdog, started):
        return found
    kind, rank, reason, when = _cause(folder, error, watchdog, started)
    log = folder.logs / f"rank-{rank}.log"
    return Failure(
        kind=kind, node=slurm_job.node_name(), rank=rank, reason=reason, time=when, tail=_tail(log), log=str(log),
        step=_step(folder, watchdog, started), steps=watchdog.stalled[0].steps if watchdog.stalled else 0,
    )  # fmt: skip


def _finding(folder: RunFolder, error: ChildFailedError, watchdog: Watchdog, started: float) -> Failure | None:
    """What the ranks found when they compared their results in this attempt.

    Each rank knows all of it, so this node reads what its own ranks recorded: a file of another node may come late.
    """
    ours = watchdog.beats.keys() or error.failures.keys()
    recorded = [e for e in folder.events() if e["event"] == "failed" and e["time"] >= started and e["rank"] in ours]
    event = next((e for e in recorded if isinstance(e.get("finding"), dict)), None)
    if event is None:
        return None
    finding = event["finding"]
    nodes = dict.fromkeys(suspect["node"] for suspect in finding["suspects"])
    where = (" and " if finding["settled"] else " or ").join(nodes)
    reason = event["error"].partition(": ")[2]
    return Failure(
        kind="unhealthy", node=where, rank=-1, reason=reason, step=finding["step"], time=event["time"],
        suspects=tuple(left_out(finding)),
    )  # fmt: skip


def _cause(
    folder: RunFolder, error: ChildFailedError, watchdog: Watchdog, started: float
) -> tuple[Kind, int, str, float]:
    """Kind, rank, reason and time of the failure."""
    rank, failed = error.get_first_failure()
    when, ours = float(failed.timestamp), watchdog.beats.keys() or error.failures.keys()
    recorded = [e for e in folder.events() if e["event"] == "failed" and e["time"] >= started and e["rank"] in ours]
    if watchdog.unkillable or watchdog.stalled:
        return *_stall(watchdog), when
    if users := [r for r, f in error.failures.items() if f.exitcode == USER_ERROR]:
        # The others may have ended first, because they lost this rank.  "UserError: data.limit …": the message says
        # what to do; the exception's name is of no use.
        mine = [e for e in recorded if e["rank"] in users] or recorded
        return "user", users[0], mine[0]["error"].partition(": ")[2] if mine else "exit code 2", when
    if own := [e for e in recorded if not PEER_LOST.search(e["error"])]:
        return "exception", own[0]["rank"], own[0]["error"], own[0]["time"]
    if killed := [r for r, f in error.failures.items() if f.exitcode < 0 and r not in watchdog.killed]:
        name = signal.Signals(-error.failures[killed[0]].exitcode).name
        return "signal", killed[0], f"ended with {name}", when
    if failed.exitcode > 0 and not recorded:
        in_use = failed.exitcode == os.EX_TEMPFAIL  # of the run folder; it may be free later
        return "secondary" if in_use else "exception", rank, f"ended with exit code {failed.exitcode}", when
    return "secondary", rank, recorded[0]["error"] if recorded else "was killed together with the other ranks", when


def _stall(watchdog: Watchdog) -> tuple[Kind, int, str]:
    """Kind, rank and reason for a rank that made no progress, or that SIGKILL did not end."""
    if watchdog.stalled and not watchdog.unkillable:
        beat, reason = watchdog.stalled
        return "stalled", beat.rank, reason
    return "unhealthy", min(watchdog.unkillable), "did not end on SIGKILL: a GPU or a file system does not respond"


def _step(folder: RunFolder, watchdog: Watchdog, started: float) -> int | None:
    """The step that the ranks were in; None before the first one."""
    began = folder.last("started")
    inside = current_step(list(watchdog.beats.values()))
    return began["step"] + inside if began and began["time"] >= started and inside is not None else None


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = log.read_text(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return ""
    except OSError as error:
        text = [str(error)]
    return "\n".join(f"  {line}" for line in text)
