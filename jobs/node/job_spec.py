"""A training job as plain data: written by `submit.py`, read by the supervisor of each node."""

from dataclasses import dataclass

from jobs.node.restart_policy import RetryLimits

# Environment variables that submit.py sets for the supervisor of a local job, in addition to the job itself.
SUBMITTER_VARIABLE = "VIT_SUBMITTER"  # the process id of submit.py; a local run ends with it
GPUS_VARIABLE = "VIT_CUDA_VISIBLE_DEVICES"  # the user's choice, which submitit's local executor overwrites
# How long a job tries to read its folder while the disk cannot be read; then it is requeued.
READ_SECONDS = 120.0


@dataclass(frozen=True)
class JobSpec:
    """What a job runs, and how often it may fail."""

    run: str  # the run folder
    nodes: int
    gpus: int  # ranks on each node; where there are no GPUs they run on the CPU
    accepted: tuple[str, ...] = ()  # settings that may differ from the checkpoint's
    restarts: int = 3  # in place after failures, between two checkpoints
    requeues: int = 3  # after failures, between two checkpoints
    same_step: int = 2  # failures at the same step, between two checkpoints
    stall_seconds: float = 60  # a step is stalled after this long, or after ten times the longest so far
    gpu_type: str = ""  # of GPUs that Slurm knows by type, such as a100; empty: any
    min_gain_minutes: float = 5  # that a larger job of the same run must save, for this one to hand over to it
    exclude_slow: bool = False  # whether a requeue excludes nodes that are slower than the others
    health: bool = True  # whether each node of a Slurm job runs the node health check before its ranks start

    def retry_limits(self) -> RetryLimits:
        """How often it may fail, and which nodes a requeue excludes."""
        return RetryLimits(
            restarts=self.restarts, requeues=self.requeues, same_step=self.same_step, exclude_slow=self.exclude_slow
        )
