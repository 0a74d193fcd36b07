"""The job of `doctor.py --preempt`: records the signals that it receives, and stays until it is killed.

It runs as a copy in a folder that the nodes share, with any Python 3, and imports only the standard library.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

EVENTS, ALIVE, END = "events.jsonl", "alive", "end"  # files in its folder
BEAT_SECONDS = 0.05
LIFETIME_SECONDS = 3600
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


def main(folder: Path) -> int:
    """Runs until the file END appears, or SIGKILL."""
    start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def record(event: str) -> None:
        line = {"event": event, "time": time.time(), "start": start, "node": socket.gethostname()}
        with (folder / EVENTS).open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def on_signal(number: int, _: FrameType | None) -> None:
        record(signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, on_signal)
    record("began")
    deadline = time.time() + LIFETIME_SECONDS
    with (folder / (ALIVE + str(start))).open("w") as alive:
        while not (folder / END).exists() and time.time() < deadline:
            os.pwrite(alive.fileno(), f"{time.time():.3f}".encode(), 0)
            time.sleep(BEAT_SECONDS)
    record("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
