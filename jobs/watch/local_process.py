"""The process on this machine that owns a run which was not submitted to Slurm."""

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from jobs.node import submitter_lock
from vit.run.folder import Event, RunFolder


def local_process(run: RunFolder, events: Sequence[Event]) -> tuple[str, str] | None:
    """`running` or `queued`, and the process on this machine that owns the run; None if there is none."""
    for name in ("owner", submitter_lock.NAME):  # between two attempts only the second one runs
        try:
            owner = (run.path / name).read_text()
            match = re.match(r"process (\d+) on (\S+?),?\s", owner)
            if match is None or match[2] != socket.gethostname():
                continue
            command = Path("/proc", match[1], "cmdline").read_bytes()
        except (OSError, UnicodeDecodeError):
            continue
        if b"vit.train" in command:
            return "running", f"process {match[1]}"
        if b"submit" in command:
            # The submit.py of a sweep has locked all runs of the sweep, and trains them one after the other.
            return "running" if _began_after(int(match[1]), events) else "queued", f"process {match[1]}"
    return None


def _began_after(process: int, events: Sequence[Event]) -> bool:
    """Whether an attempt of the run, which has not ended, is newer than the start of this process."""
    import psutil  # not at the top: it takes time, and is rarely needed

    newest = next((e for e in reversed(events) if e["event"] in {"supervising", "started", "stopped"}), None)
    try:
        started = psutil.Process(process).create_time()
    except psutil.Error:  # it has just ended
        return False
    return newest is not None and newest["event"] != "stopped" and float(newest.get("time", 0)) > started
