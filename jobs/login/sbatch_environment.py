"""The environment in which sbatch is called: without variables that would change what is submitted."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# Client settings, which Slurm's commands need inside of an allocation as outside of one.
CLIENT_VARIABLES = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
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
    stays, as its default: SBATCH_PARTITION chooses the partition if nothing else does.  Inside of an allocation the
    new job would inherit SLURM_* variables of that allocation, such as its number of GPUs.
    """
    hidden = set(ALWAYS)
    for option in (name.replace("-", "_") for name in options):
        hidden |= SBATCH_VARIABLES.get(option, {f"SBATCH_{option.upper()}"})
    if "SLURM_JOB_ID" in os.environ:
        hidden |= {
            name for name in os.environ if name.startswith(("SLURM_", "SLURMD_")) and name not in CLIENT_VARIABLES
        }
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
