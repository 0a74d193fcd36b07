"""The training job: what submitit pickles on the login node and runs on each compute node.

It is plain data.  Its methods import what they need, so that a login node can pickle it without torch.
"""

import os
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from jobs.node.job_spec import READ_SECONDS, SUBMITTER_VARIABLE, JobSpec
from vit.run.disk_errors import UNREACHABLE


@dataclass(frozen=True)
class TrainJob(JobSpec):
    """One task per node.  It runs the source, its own included, that was copied to the run folder on submission."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called on a node before submitit installs its signal handlers: imports what the handlers need."""
        from jobs.node import restart_policy, signals  # noqa: F401

        self.__dict__.update(state)

    def __call__(self) -> str:
        """Trains until the run is finished or stopped; returns which."""
        from jobs.node import candidacy, forkserver, network, run_over, signals, slurm_job, submitter_lock
        from vit.run.folder import RunFolder

        submitter = os.environ.get(SUBMITTER_VARIABLE) if slurm_job.job_id() is None else None
        if submitter and not submitter_lock.join(RunFolder(Path(self.run)), int(submitter)):
            return "stopped"
        signals.raise_on_sigterm()
        if self.nodes > 1:
            network.choose(slurm_job.first_address())
        try:
            if slurm_job.job_id() is not None:
                run_over.exit_if_over(RunFolder(Path(self.run), patience=READ_SECONDS))
                candidacy.obtain(self, prepare=forkserver.ensure_running)
            forkserver.ensure_running()
            from jobs.node.node_check_runner import NodeHealthCheck
            from jobs.node.supervisor import supervise  # takes seconds, while the fork server does its own imports

            wanted = self.health and slurm_job.job_id() is not None
            gpus = slurm_job.gpus_on_node(self.gpus)
            check = NodeHealthCheck(Path(self.run), gpus, self.nodes) if wanted else None
            outcome = supervise(self, check)
        except signals.StoppedError:
            outcome = "stopped"
            if (ownership := candidacy.current()) is not None:  # there may be no supervisor yet to do this
                signals.ignore_stop_signals()
                ownership.end_if_canceled(RunFolder(Path(self.run)))
        except OSError as error:  # the run folder, for longer than READ_SECONDS
            if slurm_job.job_id() is None or error.errno not in UNREACHABLE:
                raise
            traceback.print_exc()
            os._exit(slurm_job.REQUEUED)
        candidacy.release()
        if outcome == "stopped" and slurm_job.node_rank() == 0:
            signals.ignore_stop_signals()
            self._record_preemption()
            signals.requeue_and_exit(self._nodes_to_exclude())
        return outcome

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at preemption or near the time limit: the ranks save and exit; the job is requeued."""
        from jobs.node import candidacy, signals, slurm_job
        from vit.run.folder import RunFolder

        signals.stop_ranks()
        candidacy.release()
        if slurm_job.job_id() is not None:
            if slurm_job.has_no_slurm_commands() or not slurm_job.controller_responds():
                os._exit(slurm_job.REQUEUED)  # submitit asks only once; the batch script asks until Slurm responds
            exclude = self._nodes_to_exclude()
            # submitit cannot exclude nodes, and writes a file before it requeues.
            if (exclude or not _is_writable(RunFolder(Path(self.run)).jobs)) and not slurm_job.requeue(exclude):
                os._exit(slurm_job.REQUEUED)
        return DelayedSubmission(self)

    def _record_preemption(self) -> None:
        """If Slurm cancels preempted jobs and gives them no time to requeue themselves, says so."""
        from jobs.node import slurm_job
        from vit.run.folder import RunFolder

        job = slurm_job.job_id()
        if job is not None and slurm_job.was_preempted_for_good():
            print(f"Slurm preempted job {job} and canceled it; submit the same command to resume", flush=True)
            with suppress(OSError):
                RunFolder(Path(self.run)).record("preempted", job=job, life=slurm_job.start_id())

    def _nodes_to_exclude(self) -> list[str]:
        """None if the ledger cannot be read: the job must be requeued all the same."""
        from jobs.node import restart_policy
        from vit.run.folder import RunFolder

        with suppress(OSError):
            return restart_policy.nodes_to_exclude(RunFolder(Path(self.run)).events(), self.retry_limits())
        return []


def _is_writable(folder: Path) -> bool:
    """Whether the disk is neither full nor read-only."""
    file = folder / f"try-{os.getpid()}"
    try:
        file.write_bytes(bytes(1 << 16))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            file.unlink()
    return True
