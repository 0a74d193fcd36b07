"""The newest intact checkpoint at or before a step, read without changing anything: the run may be live."""

from collections.abc import Callable
from pathlib import Path

from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, step_of
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.resume import LoadedCheckpoint
from vit.run.disk_errors import explained


def load_checkpoint_before(folder: Path, step: int, tell: Callable[[str], None]) -> LoadedCheckpoint | None:
    """Loads the newest checkpoint of at most this step that can be read and is intact; None if there is none.

    Unlike an attempt that resumes, it goes on to an older one also if a file cannot be read now: any of them leads to
    the same step.  It says so.  A live run may remove a checkpoint while it is read, and save others: then the folder
    is listed again.
    """
    tried: set[str] = set()
    while True:
        candidates = (path for path in find_checkpoints(folder) if step_of(path) <= step and path.name not in tried)
        path = next(candidates, None)
        if path is None:
            return None
        tried.add(path.name)
        try:
            return path, *load_checkpoint(path)
        except (DamagedCheckpointError, OSError) as error:
            if path in find_checkpoints(folder):  # else the run has removed it
                tell(f"{path} cannot be used: {explained(error)}; an older one or the initial weights are taken")
