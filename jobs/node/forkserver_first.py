"""Imported by the fork server alone, before all else: it ends with its supervisor, and has a name.

By itself it would wait for the last of its forks as well.  Those get SIGTERM when it ends: they save, and leave.
"""

import ctypes
import signal

from setproctitle import setproctitle, setthreadtitle

ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
setproctitle(f"python -m {__name__}")  # now: once the environment was changed, no title can be given any more
setthreadtitle(
    "jobs.forkserver"
)  # without the blanks of the long name, which Slurm's proctrack/linuxproc stumbles over
