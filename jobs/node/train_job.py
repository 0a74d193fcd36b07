"""What submitit pickles and runs on each node: plain data.

What it does there is imported there: a login node only pickles it.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from jobs.node.job_spec import JobSpec


@dataclass(frozen=True)
class TrainJob(JobSpec):
    """One task a node.  The source it runs, its own included, was frozen into the run folder when it was submitted."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """On a node, before submitit listens to signals: what answers them is imported by then."""
        from jobs.node import restart_policy, signals  # noqa: F401

        self.__dict__.update(state)

    def __call__(self) -> str:
        """Trains until the run is finished or stopped; returns which."""
        from jobs.node import forkserver, signals, slurm_job

        signals.leave_when_told()
        try:
            forkserver.prepare()
            from jobs.node.node_health import Check
            from jobs.node.supervisor import supervise  # which takes seconds: the server imports meanwhile

            wanted = self.health and slurm_job.job() is not None
            check = Check(Path(self.run), slurm_job.gpus(self.gpus), self.nodes) if wanted else None
            outcome = supervise(self, check)
        except signals.StoppedError:
            outcome = "stopped"
        if outcome == "stopped" and slurm_job.task() == 0:
            signals.back_to_queue()
        return outcome

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at preemption or near the time limit: the ranks save and leave, the same job goes on."""
        from jobs.node import restart_policy, signals, slurm_job
        from vit.run.folder import RunFolder

        signals.stop_ranks()
        if slurm_job.job() is not None:
            if slurm_job.is_mute() or not slurm_job.answers():
                os._exit(slurm_job.REQUEUED)  # submitit asks once: the batch script does it, as soon as it is heard
            folder = RunFolder(Path(self.run))
            unfit = restart_policy.failing(folder.events(), restart_policy.Budget())
            # submitit would leave no node, and has to write before it asks.
            if (unfit or not _takes_files(folder.jobs)) and not slurm_job.requeue(unfit):
                os._exit(slurm_job.REQUEUED)
        return DelayedSubmission(self)


def _takes_files(folder: Path) -> bool:
    """Whether a disk is neither full nor read-only."""
    file = folder / f"try-{os.getpid()}"
    try:
        file.write_bytes(bytes(1 << 16))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            file.unlink()
    return True
