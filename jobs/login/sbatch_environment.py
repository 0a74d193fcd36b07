"""The environment in which sbatch is called: without variables that would change what is submitted."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from jobs.slurm.client import CLUSTER

# Client settings, which Slurm's commands need inside of an allocation as outside of one.
CLIENT_VARIABLES = {"SLURM_CONF", "SLURM_CONF_SERVER", CLUSTER, "SLURM_JWT"}
# What an allocation or srun sets for its processes.  The new job would inherit what Slurm does not set for it, and its
# srun would request it: with SLURM_GPUS, SLURM_GRES or SLURM_NTASKS_PER_GPU of another job it fails.  Its supervisors
# would take the number of an array, or of restarts, for theirs.
ALLOCATION = re.compile(
    "SLURMD_.*|SLURM_(JOB.*|STEP.*|HET_.*|ARRAY_.*|RESTART_COUNT|PROCID|LOCALID|TASK.*|N?NODE.*|NTASKS.*|NPROCS|CPUS_.*"
    "|MEM_PER_.*|GPUS.*|GRES.*|TRES_.*|THREADS_PER_CORE)"
)
# Set for the processes of an allocation with GPUs.  Slurm sets them anew for a job with GPUs that Slurm knows of.
GPU_VARIABLES = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
GPU_ALLOCATION = {"SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"}
# sbatch's options, by submitit's names, whose variables have other names or conflict with others.
SBATCH_VARIABLES = {
    "time": {"SBATCH_TIMELIMIT"},
    "mem": {"SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"},
    "signal_delay_s": {"SBATCH_SIGNAL"},
    "requeue": {"SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"},
    "no_requeue": {"SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"},
    "gpus_per_node": {"SBATCH_GPUS_PER_NODE", "SBATCH_GPUS", "SBATCH_GPUS_PER_TASK"},
    "gres": {"SBATCH_GPUS_PER_NODE", "SBATCH_GPUS", "SBATCH_GPUS_PER_TASK", "SBATCH_GRES"},
    "cpus_per_task": {"SBATCH_CPUS_PER_GPU"},
}
# Options that submitit adds or that submit.py relies on: output files, the job array, returning at once.
ALWAYS = {"SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_INPUT", "SBATCH_OPEN_MODE", "SBATCH_ARRAY_INX", "SBATCH_WAIT"}


@contextmanager
def sbatch_environment(options: Collection[str]) -> Iterator[None]:
    """Hides variables while sbatch is called with these options, which have submitit's or sbatch's names.

    A variable such as SBATCH_TIMELIMIT has precedence over the option in a batch script.  One whose option is not set
    stays, as its default: SBATCH_PARTITION chooses the partition if nothing else does.  Of the variables of an
    allocation none stays; those that only describe one are hidden also outside, where some are left over, as after
    `unset SLURM_JOB_ID`.
    """
    hidden = set(ALWAYS)
    for option in (name.replace("-", "_") for name in options):
        hidden |= SBATCH_VARIABLES.get(option, {f"SBATCH_{option.upper()}"})
    hidden |= {name for name in os.environ if _is_of_an_allocation(name)}
    if not GPU_ALLOCATION.isdisjoint(os.environ):
        hidden |= GPU_VARIABLES
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _is_of_an_allocation(name: str) -> bool:
    if "SLURM_JOB_ID" in os.environ and name.startswith("SLURM_") and name not in CLIENT_VARIABLES:
        return True
    return ALLOCATION.fullmatch(name) is not None
