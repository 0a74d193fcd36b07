"""Wrappers around Slurm's commands, as sites put them in front of the real ones."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.slurm_cluster import Cluster
from tests.helpers.slurm_config import SEARCH_PATH

COMMANDS = ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "sacct", "sacctmgr", "srun")
# Before and after the output of the command, on both streams, with what could be taken for the output itself.
BANNER = """\
echo '*** Welcome: job 7 of the maintenance|starts|on|Monday|9:00; partition=low ***'
echo '3 idle'
echo ''
echo 'NOTICE: your job 99 has used its quota; nodes may be not responding' >&2
{command} "$@"
code=$?
echo 'Goodbye! 55 CPU hours are left; job 55 was your last'
echo 'bye' >&2
exit $code
"""


def real(command: str) -> str:
    """The path of one of Slurm's own commands."""
    path = shutil.which(command, path=SEARCH_PATH)
    assert path is not None
    return path


def wrapped(folder: Path, slurm: Cluster, scripts: Mapping[str, str]) -> Cluster:
    """The same cluster, as a user sees it: with these scripts in front of the commands of their names.

    In a script, `{command}` is the path of the real one.
    """
    folder.mkdir()
    for name, text in scripts.items():
        file = folder / name
        file.write_text("#!/bin/sh\n" + text.replace("{command}", real(name)))
        file.chmod(0o755)
    out = object.__new__(Cluster)
    out.__dict__ |= slurm.__dict__
    out.environment = slurm.environment | {"PATH": f"{folder}:{slurm.environment['PATH']}"}
    return out


def without(prefix: str) -> dict[str, str]:
    """This environment without the variables that begin so."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
