"""The checks of this machine, in about two seconds: software, disks, data sets, logins, and what Slurm is set to do."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from jobs.login.slurm_queries import SlurmNotFoundError, SlurmUnreachableError
from jobs.readiness.disk import check_runs_folder
from jobs.readiness.finding import Finding
from jobs.readiness.request import Request
from jobs.readiness.run_config import check_config, check_data, check_wandb, failed
from jobs.readiness.slurm_checks import check_slurm
from jobs.readiness.software import check_software


def query_slurm(request: Request) -> Iterable[Finding]:
    """Asks Slurm for its settings, which several checks need; `check_slurm` tells if it does not respond."""
    request.query_slurm()
    return ()


Check = Callable[[Request], Iterable[Finding]]

SECONDS = 30.0  # for one check: a file server that does not respond would block it forever

CHECKS: tuple[tuple[str, Check], ...] = (
    ("software", check_software),
    ("Slurm", query_slurm),
    ("runs folder", check_runs_folder),
    ("config", check_config),
    ("data", check_data),
    ("W&B", check_wandb),
    ("Slurm", check_slurm),
)


def check_here(request: Request, seconds: float = SECONDS) -> Iterator[Finding]:
    """Runs all checks.  One that fails, or takes longer than `seconds`, does not prevent the others."""
    for name, check in CHECKS:
        yield from guarded(name, check, request, seconds)


def guarded(name: str, check: Check, request: Request, seconds: float) -> Iterator[Finding]:
    """The findings of a check; an exception is one of them, and so is a timeout."""
    found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            for finding in check(request):
                found.put(finding)
        except (OSError, ValueError, ImportError, SlurmUnreachableError, SlurmNotFoundError) as error:
            found.put(failed(name, error))
        except Exception as error:
            found.put(Finding(name, "FAIL", f"this check failed: {error!r}", "report it as a bug of doctor.py"))
        found.put(None)

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            finding = found.get(timeout=seconds)
        except queue.Empty:
            advice = "look whether a file server is down: `ls` of the folders and data sets of this command"
            yield Finding(name, "FAIL", f"no answer within {seconds:g} s", advice)
            return
        if finding is None:
            return
        yield finding
