"""PYTHONPATH of the processes of a job."""

import os
from pathlib import Path

# What the user has set: on some clusters, modules provide torch by it.  A local run, possibly one of several in this
# process, puts its source in front.
USER_PYTHONPATH = os.environ.get("PYTHONPATH", "")


def search_path(source: Path) -> str:
    """A value of PYTHONPATH with which Python imports this source, and otherwise what the user's PYTHONPATH has."""
    return os.pathsep.join(filter(None, (str(source), USER_PYTHONPATH)))
