"""Imported first, by the fork server only: makes it end with its supervisor, and names it.

By default the server would also wait for the last of its forks.  They get SIGTERM when it ends, then save and exit.
The server collects no garbage: it only imports.
"""

import os
import signal

from setproctitle import setproctitle, setthreadtitle

from jobs.node.forkserver_process import READY_VARIABLE
from vit.run.garbage_collection import pause_collection
from vit.run.parent import end_with_parent

pause_collection()
end_with_parent(signal.SIGKILL, parent=int(os.environ[READY_VARIABLE].split("/")[2]))  # /proc/SUPERVISOR/fd/N
setproctitle(f"python -m {__name__}")  # now: no title can be set any more once the environment has changed
# The kernel's short name, at most 15 characters, without the blanks of the title: Slurm's proctrack/linuxproc reads
# the name in /proc/PID/stat only up to the first blank, and then overlooks the process.
setthreadtitle("jobs.forkserver")
