"""What sbatch prints when it accepts or rejects a job, with what plugins and wrappers of the site add to it."""

import re
from dataclasses import dataclass

SUBMITTED = re.compile(r"^Submitted batch job (\d+)(?: on cluster (\S+))?\s*$", re.M)
PARSABLE = re.compile(r"^(\d+)(?:;(\S+))?\s*$", re.M)  # of `sbatch --parsable`, which a wrapper may use
ANY = re.compile(r"\bjob (\d+)")
PREFIX = "sbatch: "  # of all that sbatch and its plugins say on standard error
ERROR = re.compile(r"^sbatch: (?:error|fatal): ")
FAILED = re.compile(r"^(?:Batch job submission failed|allocation failure): ")
UNSPECIFIED = "Unspecified error"  # the reason if a job_submit plugin has refused the job; its message says more


@dataclass(frozen=True)
class SubmittedJob:
    """A job that sbatch has accepted."""

    job: str
    cluster: str  # that sbatch names if it was asked for another cluster; empty: the own one


def submitted_job(printed: str) -> SubmittedJob | None:
    """The job in what sbatch printed on standard output, among the lines of a wrapper; None if it is not clear."""
    for pattern in (SUBMITTED, PARSABLE):
        if found := pattern.findall(printed):
            return SubmittedJob(*found[-1])
    numbers = set(ANY.findall(printed))
    return SubmittedJob(numbers.pop(), "") if len(numbers) == 1 else None


def remarks(errors: str) -> list[str]:
    """What sbatch and the plugins of the site said of a job that was accepted, on standard error."""
    lines = [line.removeprefix(PREFIX).strip() for line in errors.splitlines() if line.startswith(PREFIX)]
    return [line for line in dict.fromkeys(lines) if line]


@dataclass(frozen=True)
class Rejection:
    """Why a job was rejected."""

    reason: str  # Slurm's own; empty if sbatch printed none
    messages: tuple[str, ...] = ()  # what plugins and sbatch said before

    @property
    def text(self) -> str:
        """All of it in one line."""
        reasons = [self.reason] if self.reason != UNSPECIFIED or not self.messages else []
        return "; ".join(part.rstrip(".;") for part in dict.fromkeys([*self.messages, *reasons]) if part)


def rejection(errors: str) -> Rejection:
    """The reason in what sbatch printed on standard error, with what a wrapper adds to it."""
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith(("Try ", "sbatch: Try "))]
    own = [ERROR.sub("", line).strip() for line in lines if ERROR.match(line)]
    if not own:
        return Rejection(FAILED.sub("", lines[-1].removeprefix(PREFIX).removeprefix("error: ")) if lines else "")
    *messages, reason = own
    return Rejection(FAILED.sub("", reason), tuple(FAILED.sub("", message) for message in messages))
