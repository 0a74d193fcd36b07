"""Has a job that starts again go on without the nodes that do not see its run folder; called by its batch script.

python -m jobs.node.requeue_excluding --requeues 3 NODE ...
"""

import sys
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

from jobs.node import slurm_job
from jobs.node.requeue import requeue
from jobs.node.restart_policy import Budget, Failure, decide
from vit.run.folder import RunFolder


def main(nodes: list[str], folder: RunFolder, budget: Budget) -> int:
    """The exit code: REQUEUED, or 1 if the run is given up.  Without names it is not known which nodes they are."""
    names = nodes or ["another node"]
    reason = f"{' and '.join(names)} did not see {folder.path} when the job started again"
    failure = Failure(kind="sick", node=names[0], rank=-1, reason=reason, time=time.time())
    decision = decide(folder.events(), failure, budget, slurm_job.life(), in_slurm=True)
    if decision.what == "give up":
        given_up = f"{failure.told()}\n{decision.why}"
    else:
        given_up = requeue(folder, replace(decision, exclude=tuple(sorted({*decision.exclude, *nodes}))), failure)
    if given_up:
        folder.record("gave up", why=given_up)
        print(given_up, file=sys.stderr)
    return 1 if given_up else slurm_job.REQUEUED


if __name__ == "__main__":
    parser = ArgumentParser("jobs.node.requeue_excluding", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("nodes", nargs="*", metavar="NODE", help="those that do not see the run folder")
    parser.add_argument("--requeues", type=int, required=True, help="because of failures, between two checkpoints")
    asked = parser.parse_args()
    sys.exit(main(asked.nodes, RunFolder(Path(__file__).resolve().parents[3]), Budget(requeues=asked.requeues)))
