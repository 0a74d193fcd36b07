"""Records for how long a job was suspended, by a preemption (PreemptMode=SUSPEND), in turns with others, or by hand."""

import threading
import time
from contextlib import suppress

from vit.run.folder import RunFolder
from vit.run.progress import format_duration, show

SUSPENDED_SECONDS = 10  # a loop that runs each second and took longer was suspended with its job
POLL_SECONDS = 1.0


class SuspensionLog(threading.Thread):
    """Runs as long as the supervisor of the first node.  A suspended process notices only that time has passed."""

    def __init__(self, folder: RunFolder, start_id: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.start_id = folder, start_id

    def run(self) -> None:
        """Looks at the clock every second."""
        before = time.monotonic()
        while True:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if now - before > SUSPENDED_SECONDS:
                self._record(now - before)
            before = now

    def _record(self, seconds: float) -> None:
        show(f"the job did not run for {format_duration(seconds)}: it was suspended", lasting=True)
        with suppress(OSError):  # the disk may be full
            self.folder.record("suspended", life=self.start_id, seconds=round(seconds))
