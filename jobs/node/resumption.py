"""Says in the job's log at which step the ranks resume: their own output goes to other files."""

import threading
import time
from contextlib import suppress

from vit.history.words import resuming_line
from vit.run.folder import RunFolder
from vit.run.heartbeat import HeartbeatSlots
from vit.run.progress import show

POLL_SECONDS = 0.2


class Resumption(threading.Thread):
    """Prints one line about an attempt as soon as it is in its first step, and so all ranks have started."""

    def __init__(self, slots: HeartbeatSlots, run: RunFolder) -> None:
        super().__init__(daemon=True)
        self.slots, self.folder = slots, run
        self._over = threading.Event()
        self._created = time.time()

    def run(self) -> None:
        """Waits for the ranks of this node in shared memory, without reading a disk; then reads the ledger."""
        over = False
        while not over:
            over = self._over.wait(POLL_SECONDS)
            if any(beat.steps for beat in self.slots.read()) and self._print():
                return

    def _print(self) -> bool:
        """Prints the line; returns False if rank 0 has not recorded yet that this attempt has started."""
        with suppress(OSError):
            events = self.folder.events()
            if not any(e["event"] == "started" and e.get("time", 0) >= self._created for e in events):
                return False  # another rank of this node was faster
            if line := resuming_line(events):
                show(line, lasting=True)
        return True

    def stop(self) -> None:
        """Ends the thread, if it was started."""
        self._over.set()
        if self.ident is not None:
            self.join()
