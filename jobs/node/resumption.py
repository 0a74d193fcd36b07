"""Says in the job's log at which step the ranks resume: their own output goes to other files."""

import threading
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

    def run(self) -> None:
        """Waits for the ranks of this node in shared memory, without reading a disk; then reads the ledger once."""
        while not any(beat.steps for beat in self.slots.read()):
            if self._over.wait(POLL_SECONDS):
                return
        with suppress(OSError):
            if line := resuming_line(self.folder.events()):
                show(line, lasting=True)

    def stop(self) -> None:
        """Ends the thread, if it was started."""
        self._over.set()
        if self.ident is not None:
            self.join()
