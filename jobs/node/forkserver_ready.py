"""Imported last, by the fork server only: reports that it is ready, and which modules could not be imported.

multiprocessing ignores failed imports silently; each fork then fails with the same error, in its own log.
"""

import os
import sys
from pathlib import Path

from jobs.node.forkserver import IMPORTED
from jobs.node.forkserver_process import READY_VARIABLE

if missing := [name for name in IMPORTED if name not in sys.modules]:
    print(f"cannot be imported: {', '.join(missing)}", file=sys.stderr)
Path(os.environ[READY_VARIABLE]).write_text("ready")
