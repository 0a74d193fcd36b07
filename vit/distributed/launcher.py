"""What the launcher of the ranks (torchrun, or a job's supervisor) tells each rank, and what happens when it ends.

Imports no torch: `end_with_launcher` must be called before imports that take seconds.
"""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vit.config.user_error import UserError
from vit.run.parent import end_with_parent

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """One rank's place among all ranks, and among those of its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that a launcher has put into the environment; a single rank if there was no launcher.

    Raises UserError for an incomplete set of variables, which an earlier command may have left behind: the process
    would wait for ranks that nobody starts.
    """
    # Addresses alone are not read; many people export them in their shell's profile.
    if not any(name in environment for name in RANK_VARIABLES[:4]):
        return Place()
    found = [name for name in RANK_VARIABLES if name in environment]
    missing = [name for name in RANK_VARIABLES if name not in environment]
    fix = f"`unset {' '.join(found)}` to use one process, or start the ranks with torchrun"
    if missing:
        found_values = ", ".join(f"{name}={environment[name]}" for name in found)
        raise UserError(f"the environment has {found_values}, but not {', '.join(missing)}: {fix}")
    try:
        place = Place(*(int(environment[name]) for name in RANK_VARIABLES[:4]))
    except ValueError:
        place = Place(rank=-1)
    if not (0 <= place.rank < place.size and 0 <= place.local_rank < place.local_size <= place.size):
        values = ", ".join(f"{name}={environment[name]}" for name in RANK_VARIABLES[:4])
        raise UserError(f"the environment has {values}, which are not the numbers of a rank: {fix}")
    return place


def end_with_launcher() -> None:
    """Makes the kernel send SIGTERM to this rank when torchrun ends; exits if it has ended already."""
    if {"RANK", "TORCHELASTIC_RUN_ID"} <= os.environ.keys():
        end_with_parent(signal.SIGTERM)
        if _is_reaper(os.getppid()):
            sys.exit("torchrun has ended; so does this rank")


def _is_reaper(parent: int) -> bool:
    """Whether this process was inherited by `parent`, because the launcher that had started it has ended.

    torchrun does not tell its process id, and whoever inherits its ranks (init, a service manager, the first process of
    a container) also started before them.  But torchrun is a Python process of the same user, and a program between it
    and the rank, such as a shell, has the variables of the rank.  A parent that cannot be examined counts as alive.
    """
    folder, run = Path(f"/proc/{parent}"), f"TORCHELASTIC_RUN_ID={os.environ['TORCHELASTIC_RUN_ID']}"
    try:
        users = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("Uid:"))
        if int(users.split()[1]) != os.getuid():
            return True
        program = os.readlink(folder / "exe")
        if program == os.readlink("/proc/self/exe") or Path(program).name.startswith("python"):
            return False
        return run.encode() not in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
