"""Has a job that starts again go on without the nodes that do not see its run folder; called by its batch script.

python -m jobs.blind NODE ...
"""

import sys
import time
from pathlib import Path

from jobs import signals, slurm
from jobs.budget import Budget, Failure, decide
from vit.ledger import RunFolder


def main(nodes: list[str], folder: RunFolder) -> int:
    """The exit code: REQUEUED, or 1 if the run is given up.  Without names it is not known which nodes they are."""
    names = nodes or ["another node"]
    told = f"{' and '.join(names)} did not see {folder.path} when the job started again"
    failure = Failure(kind="sick", node=names[0], rank=-1, reason=told, time=time.time())
    decision = decide(folder.events(), failure, Budget(), slurm.life(), in_slurm=True)
    if decision.what == "give up":
        folder.record("gave up", why=f"{told}\n{decision.why}")
        print(decision.why, file=sys.stderr)
        return 1
    exclude = sorted({*decision.exclude, *nodes})
    folder.record("requeueing", life=slurm.life(), why=decision.why, exclude=exclude, **failure.event())
    off = f", off {', '.join(exclude)}" if exclude else ""
    print(f"back into the queue{off}: {decision.why}", flush=True)
    signals.ignore()  # Slurm ends us while we still speak to it
    if refused := slurm.requeue(exclude):
        folder.record("gave up", why=f"{told}\nthe job could not be requeued: {refused}")
        print(refused, file=sys.stderr)
        return 1
    return slurm.REQUEUED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], RunFolder(Path(__file__).resolve().parents[2])))
