"""What Slurm's commands print when they fail."""

import re

# The controller does not respond.
UNREACHABLE = re.compile(
    r"unable to contact|connect(ion)? (failure|refused)|timed out|not responding|socket timed", re.I
)
NO_CLUSTER = "configuration source"  # no cluster is configured
# Errors of a requeue that another try would not change: the job was submitted with --no-requeue, or access is denied.
PERMANENT_ERRORS = re.compile(r"disabled|only batch jobs|access|permission", re.I)
# Slurm forgets jobs some minutes after their end.  Of a task whose array it still knows, it says so on standard output.
UNKNOWN_JOB = re.compile(r"invalid job id|^job .*not found", re.I | re.M)


def reason_of(output: str) -> str:
    """The reason in what sbatch printed when it rejected a job; "" if it printed none."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("Try ")]
    reason = (lines or [""])[-1].removeprefix("sbatch: ").removeprefix("error: ")
    return reason.removeprefix("Batch job submission failed: ")
