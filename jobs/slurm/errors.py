"""What Slurm's commands print when they fail."""

import re

# The controller, or the accounting database, does not respond.
UNREACHABLE = re.compile(
    r"unable to contact|connect(ion)? (failure|refused)|timed out|not responding|socket timed|sending persistinit msg",
    re.I,
)
# sbatch has sent the job, but got no answer: Slurm may accept it later.
UNANSWERED = re.compile(
    r"timed out|zero bytes|communication shutdown|unexpected message|header length|"
    r"transport endpoint|connection reset|broken pipe",
    re.I,
)
NO_CLUSTER = "configuration source"  # no cluster is configured
# Errors of a requeue that another try would not change: the job was submitted with --no-requeue, or access is denied.
PERMANENT_ERRORS = re.compile(r"disabled|only batch jobs|access|permission", re.I)
_UNKNOWN_JOB = re.compile(r"invalid job id|^job .*not found", re.I | re.M)

# Slurm's commands cannot read their configuration, or cannot be run at all.
MISCONFIGURED = re.compile(r"fatal: |cannot stat file|unrecognized key|error while loading shared libraries", re.I)
# The same and worse, in commands that end with exit code 0, because a wrapper of the site discards it.
CERTAIN = re.compile(r"unable to contact slurm controller|slurm_load_\w+ error|fatal: ", re.I)


def is_unknown_job(output: str, errors: str) -> bool:
    """Whether Slurm does not know a job.  It forgets them some minutes after their end.

    Of a task whose array it still knows, it says so on standard output; since 26.05 on standard error.
    """
    return any(map(_UNKNOWN_JOB.search, (output, errors)))


def first_error(printed: str) -> str:
    """The first line on standard error that says what is wrong, without the command's name; "" if there is none."""
    lines = [line for line in printed.splitlines() if re.search(r"error|fatal|not found|denied", line, re.I)]
    lines = [line for line in lines if "attempt number" not in line] or lines
    first = re.sub(r"^(?:\w+: )?(?:error: |fatal: )?(?:\w+: )?", "", lines[0]) if lines else ""
    return re.sub(r",? (retrying in|attempt number).*", "", first).rstrip(" .")


def refusal(code: int, printed: str) -> str:
    """Why a command refused, by its exit code and standard error, where a wrapper may print a banner; "" if not."""
    lines = [line for line in printed.strip().splitlines() if code or re.search(r"\berror\b", line)]
    return "\n".join(lines)
