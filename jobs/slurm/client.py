"""The environment of Slurm's commands: without variables that change which rows they show, and in which format.

Sites and users set such variables for their own eyes: with SQUEUE_STATES=RUNNING or SQUEUE_PARTITION=debug, squeue
would not show a job that waits, and the run would be submitted a second time; with SCANCEL_INTERACTIVE scancel would
ask a question.  Variables that say which cluster is asked, such as SLURM_CONF and SLURM_CLUSTERS, are kept.
"""

import os

# Options of one command each.  Those of sbatch and srun (SBATCH_*, SRUN_*) are requests: see sbatch_environment.py.
PREFIXES = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_")
FORMATS = ("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
CLUSTER = "SLURM_CLUSTERS"  # names the cluster that the commands ask; not in a job, which is on its own one
# The same in a line of the batch script, for commands that it and submitit call: in bash ${!X@} are all names with X.
UNSET = f"unset {' '.join(f'${{!{prefix}@}}' for prefix in PREFIXES)} {' '.join(FORMATS)} {CLUSTER}"


def environment() -> dict[str, str]:
    """The variables of this process, without those."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES) and name not in FORMATS}
