"""Imported by the fork server alone, after all else: it tells that it is ready, and what it could not import.

Its own imports that fail are passed over in silence; each fork then fails with the same error, in its own log.
"""

import os
import sys
from pathlib import Path

from jobs.node.forkserver import READY_VARIABLE, WANTED

if missing := [name for name in WANTED if name not in sys.modules]:
    print(f"cannot be imported: {', '.join(missing)}", file=sys.stderr)
Path(os.environ[READY_VARIABLE]).touch()
