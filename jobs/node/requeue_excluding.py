"""Requeues a job that has restarted, excluding the nodes that do not see its run folder; called by its batch script.

python -m jobs.node.requeue_excluding --requeues 3 NODE ...
"""

import sys
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

from jobs.node import slurm_job
from jobs.node.job_spec import READ_SECONDS
from jobs.node.requeue import requeue
from jobs.node.restart_policy import Failure, RetryLimits, decide
from vit.run.command import run_command
from vit.run.folder import RunFolder


def main(nodes: list[str], folder: RunFolder, limits: RetryLimits) -> int:
    """Returns the exit code: REQUEUED, or 1 if the run is given up.  `nodes` may be empty if they are not known."""
    names = nodes or ["another node"]
    reason = f"{' and '.join(names)} did not see {folder.path} when the job restarted"
    failure = Failure(kind="unhealthy", node=names[0], rank=-1, reason=reason, time=time.time())
    decision = decide(folder.events(), failure, limits, slurm_job.start_id(), in_slurm=True)
    if decision.what == "give up":
        given_up = f"{failure.message()}\n{decision.why}"
    else:
        given_up = requeue(folder, replace(decision, exclude=tuple(sorted({*decision.exclude, *nodes}))), failure)
    if given_up:
        folder.record("gave up", why=given_up)
        print(given_up, file=sys.stderr)
    return 1 if given_up else slurm_job.REQUEUED


if __name__ == "__main__":
    parser = ArgumentParser("jobs.node.requeue_excluding", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("nodes", nargs="*", metavar="NODE", help="nodes that do not see the run folder")
    parser.add_argument("--requeues", type=int, required=True, help="allowed after failures, between two checkpoints")
    options = parser.parse_args()
    limits = RetryLimits(requeues=options.requeues)
    folder = RunFolder(Path(__file__).resolve().parents[3], patience=READ_SECONDS)
    run_command(lambda: main(options.nodes, folder, limits), keep_going=True)
