"""Imported first, by the fork server only: makes it end with its supervisor, and names it.

By default the server would also wait for the last of its forks.  They get SIGTERM when it ends, then save and exit.
"""

import ctypes
import os
import signal

from setproctitle import setproctitle, setthreadtitle

from jobs.node.forkserver_process import READY_VARIABLE

ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if not os.environ[READY_VARIABLE].startswith(f"/proc/{os.getppid()}/"):
    os._exit(1)  # the supervisor ended before
setproctitle(f"python -m {__name__}")  # now: no title can be set any more once the environment has changed
# The kernel's short name, at most 15 characters, without the blanks of the title: Slurm's proctrack/linuxproc reads
# the name in /proc/PID/stat only up to the first blank, and then overlooks the process.
setthreadtitle("jobs.forkserver")
