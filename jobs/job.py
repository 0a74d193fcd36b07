"""What submitit pickles and runs on each node: plain data, and how to stop when Slurm wants the node back."""

import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission

# Environment of a local job: what submit.py tells the supervisor beside the job itself.
SUBMITTER_VARIABLE = "VIT_SUBMITTER"  # the process id of submit.py; a local run ends with it
GPUS_VARIABLE = "VIT_CUDA_VISIBLE_DEVICES"  # the user's choice, which submitit's local executor overwrites


class StoppedError(Exception):
    """SIGTERM came before there were ranks to tell."""


def _leave(number: int, _: FrameType | None) -> None:
    raise StoppedError(signal.Signals(number).name)


@dataclass(frozen=True)
class TrainJob:
    """One task a node.  The source it runs, its own included, was frozen into the run folder when it was submitted."""

    run: str  # the run folder
    nodes: int
    gpus: int  # ranks on each node; where there are no GPUs they run on the CPU
    accepted: tuple[str, ...] = ()  # settings that may differ from the checkpoint's

    def __call__(self) -> str:
        """Trains until the run is finished or stopped; returns which."""
        # submitit ignores SIGTERM, and torch, which will not, takes seconds to import.
        signal.signal(signal.SIGTERM, _leave)
        try:
            from jobs.supervise import supervise

            return supervise(Path(self.run), self.nodes, self.gpus, self.accepted)
        except StoppedError:
            return "stopped"

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at preemption or near the time limit: the ranks save and leave, the same job goes on."""
        from jobs.supervise import stop_ranks

        stop_ranks()
        return DelayedSubmission(self)
