"""Why ranks of this node ended, from their exit codes, their own words and what the watch saw."""

import os
import re
import signal
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from jobs.node import slurm_job
from jobs.node.restart_policy import Failure, Kind
from jobs.node.watchdog import Watch, current_step
from vit.run.folder import RunFolder

USER_ERROR = 2  # exit code of a rank that only the user can help
# What ranks say when they lose another one, by gloo, NCCL or the store.
LOST_A_PEER = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|Dist(Network|Store|Backend)Error", re.I
)


def from_ranks(folder: RunFolder, error: ChildFailedError, watch: Watch, started: float) -> Failure:
    """What failed first on this node in the attempt that started then (time.time())."""
    kind, rank, reason, when = _cause(folder, error, watch, started)
    log = folder.logs / f"rank-{rank}.log"
    return Failure(
        kind=kind, node=slurm_job.node(), rank=rank, reason=reason, time=when, tail=_tail(log), log=str(log),
        step=_step(folder, watch, started), steps=watch.stalled[0].steps if watch.stalled else 0,
    )  # fmt: skip


def _cause(folder: RunFolder, error: ChildFailedError, watch: Watch, started: float) -> tuple[Kind, int, str, float]:
    rank, failed = error.get_first_failure()
    when, ours = float(failed.timestamp), watch.signs.keys() or error.failures.keys()
    told = [e for e in folder.events() if e["event"] == "failed" and e["time"] >= started and e["rank"] in ours]
    if watch.stuck or watch.stalled:
        return *_standing(watch), when
    if failed.exitcode == USER_ERROR:
        # "ValueError: data.limit …": what there is to do is in the sentence.
        return "user", rank, told[0]["error"].partition(": ")[2] if told else "exit code 2", when
    if own := [e for e in told if not LOST_A_PEER.search(e["error"])]:
        return "exception", own[0]["rank"], own[0]["error"], own[0]["time"]
    if killed := [r for r, f in error.failures.items() if f.exitcode < 0 and r not in watch.ended]:
        name = signal.Signals(-error.failures[killed[0]].exitcode).name
        return "signal", killed[0], f"ended with {name}", when
    if failed.exitcode > 0 and not told:
        taken = failed.exitcode == os.EX_TEMPFAIL  # the run folder is, perhaps for a while only
        return "echo" if taken else "exception", rank, f"ended with exit code {failed.exitcode}", when
    return "echo", rank, told[0]["error"] if told else "was ended with the others", when


def _standing(watch: Watch) -> tuple[Kind, int, str]:
    """Of a rank that did not go on, or did not even end."""
    if watch.stalled and not watch.stuck:
        sign, reason = watch.stalled
        return "stalled", sign.rank, reason
    return "sick", min(watch.stuck), "does not end by SIGKILL: a GPU or a file system does not answer it"


def _step(folder: RunFolder, watch: Watch, started: float) -> int | None:
    """The step that the ranks were in, as far as they got to one."""
    began = folder.last("started")
    inside = current_step(list(watch.signs.values()))
    return began["step"] + inside if began and began["time"] >= started and inside is not None else None


def _tail(log: Path, lines: int = 15) -> str:
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
    return "\n".join(f"  {line}" for line in text)
