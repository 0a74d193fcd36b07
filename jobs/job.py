"""What submitit pickles and runs on each node: plain data, and how to stop when Slurm wants the node back."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission

from jobs import slurm, warm
from jobs.health import Check
from jobs.signals import StoppedError, ignore, stop_ranks

# Environment of a local job: what submit.py tells the supervisor beside the job itself.
SUBMITTER_VARIABLE = "VIT_SUBMITTER"  # the process id of submit.py; a local run ends with it
GPUS_VARIABLE = "VIT_CUDA_VISIBLE_DEVICES"  # the user's choice, which submitit's local executor overwrites


def _leave(number: int, _: FrameType | None) -> None:
    raise StoppedError(signal.Signals(number).name)


def back_to_queue() -> None:
    """Has Slurm start this job again, unless Slurm has ended it.

    A job that is preempted has its grace time, and is requeued at its end.  One that leaves sooner, and well, is done
    for Slurm, unless it asks for more.
    """
    if slurm.job() is None:
        return
    ignore()
    if slurm.is_mute():
        sys.exit(slurm.REQUEUED)
    if refused := slurm.requeue():
        print(f"the job could not be requeued: {refused}", file=sys.stderr)


@dataclass(frozen=True)
class TrainJob:
    """One task a node.  The source it runs, its own included, was frozen into the run folder when it was submitted."""

    run: str  # the run folder
    nodes: int
    gpus: int  # ranks on each node; where there are no GPUs they run on the CPU
    accepted: tuple[str, ...] = ()  # settings that may differ from the checkpoint's
    restarts: int = 3  # in place after failures, between two checkpoints
    requeues: int = 3  # after failures, between two checkpoints
    same_step: int = 2  # failures at the same step, between two checkpoints
    stall_seconds: float = 60  # for which a step may stand still; ten times the longest one if that is more
    health: bool = True  # whether each node of a Slurm job is looked over before its ranks start

    def __call__(self) -> str:
        """Trains until the run is finished or stopped; returns which."""
        # submitit ignores SIGTERM, and torch, which will not, takes seconds to import.
        signal.signal(signal.SIGTERM, warm.patiently(_leave))
        if callable(submitits := signal.getsignal(signal.SIGUSR2)):
            signal.signal(signal.SIGUSR2, warm.patiently(submitits))
        try:
            warm.prepare()
            from jobs.supervise import supervise  # which takes seconds: the server imports meanwhile

            wanted = self.health and slurm.job() is not None
            check = Check(Path(self.run), slurm.gpus(self.gpus), self.nodes) if wanted else None
            outcome = supervise(self, check)
        except StoppedError:
            outcome = "stopped"
        if outcome == "stopped" and slurm.task() == 0:
            back_to_queue()
        return outcome

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at preemption or near the time limit: the ranks save and leave, the same job goes on."""
        stop_ranks()
        if slurm.is_mute() or not slurm.answers():
            os._exit(slurm.REQUEUED)  # submitit asks once: the batch script does it, as soon as it is heard
        return DelayedSubmission(self)
