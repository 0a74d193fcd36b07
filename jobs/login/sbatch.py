"""What is submitted to Slurm: submitit's executor and script, for one run or for the array of a sweep."""

import io
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from jobs.login.resources import Resources, frozen_source
from jobs.login.run_folder import unshared
from jobs.login.slurm_queries import refusal
from jobs.node.slurm_job import REQUEUED, SETUP, TEARDOWN
from vit.run.folder import RunFolder

MAX_TIMEOUTS = 10_000  # requeues at the time limit; submitit's own default of 3 would end a long run
LOOK = 'for _ in $(seq $1); do [ -e "$0" ] && exit 0; sleep 1; done; echo $SLURMD_NODENAME; exit 1'


class RefusedError(RuntimeError):
    """Slurm took no job."""


def submit(
    folder: Path, resources: Resources, runs: Sequence[RunFolder], jobs: Sequence[Callable[[], Any]]
) -> list[str]:
    """Submits one job, or an array of several, and returns their numbers.  Raises RefusedError."""
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it raises, too
            submitted = executor(folder, resources, runs).submit_array(jobs)
    except (FailedJobError, RuntimeError) as error:
        for run in runs:
            if not run.ledger.exists():
                run.config.unlink()  # never run: the next try may have other settings
        raise RefusedError(refusal(str(error), resources.cluster)) from error
    if why := unshared(folder.parent):
        print(f"submit.py: warning: {why}", file=sys.stderr)
    for run, job in zip(runs, submitted, strict=True):
        run.record("submitted", job=job.job_id)
    return [job.job_id for job in submitted]


def executor(folder: Path, asked: Resources, runs: Sequence[RunFolder]) -> submitit.SlurmExecutor:
    """One task a node, for one run or as an array of several.  Raises RuntimeError if there is no Slurm here."""
    out = submitit.SlurmExecutor(folder=folder, max_num_timeout=MAX_TIMEOUTS, python=asked.python)
    out.update_parameters(**parameters(asked, runs))
    return out


def parameters(asked: Resources, runs: Sequence[RunFolder]) -> dict[str, Any]:
    """The sbatch options, as submitit names them."""
    cluster = asked.cluster
    name = runs[0].path.name if len(runs) == 1 else runs[0].path.parent.name
    typed = cluster.gres if asked.asks_gpus else ""
    named: dict[str, Any] = {
        "job_name": name,
        "time": cluster.minutes,
        "nodes": asked.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": asked.gpus if asked.asks_gpus and not typed else None,
        "gres": f"{typed}:{asked.gpus}" if typed else None,
        "cpus_per_task": asked.cpus,
        "signal_delay_s": cluster.signal_seconds,
        "stderr_to_stdout": True,
        "setup": [*SETUP, *cluster.prologue(), *_frozen_sources(runs), *seen_by_all(asked)],
        "srun_args": ["--cpus-per-task", str(asked.cpus)],  # Slurm 22.05 to 23.02 do not tell srun
        "teardown": list(TEARDOWN),
        "array_parallelism": asked.parallel or len(runs),
        "dependency": f"afterok:{asked.after}" if asked.after else None,
        **{
            key: getattr(cluster, key) or None
            for key in ("partition", "account", "qos", "constraint", "exclude", "mem")
        },
        "exclusive": cluster.exclusive or None,
        "additional_parameters": {
            "requeue" if cluster.requeue else "no-requeue": True,  # submitit does not ask for it by itself
            **({"reservation": cluster.reservation} if cluster.reservation else {}),
            **({"kill-on-invalid-dep": "yes"} if asked.after else {}),
            **{key: value or True for key, value in cluster.sbatch.items()},
        },
    }
    return {name: value for name, value in named.items() if value is not None}


def seen_by_all(asked: Resources) -> list[str]:
    """Shell commands after which every node sees the run folder.

    One that does not could not even say so: what it writes would be in there.  At the job's first start that is for the
    user to mend; later a node may have lost its mount, or be late with it.
    """
    if asked.nodes == 1:
        return []
    return [
        f"blind=$(srun --ntasks-per-node 1 sh -c '{LOOK}' \"$PYTHONPATH\" $((SLURM_RESTART_COUNT ? 30 : 5))) || {{",
        '  echo ${blind:-a node} does not see "$PYTHONPATH: choose a --runs-dir that all nodes share"',
        "  [ ${SLURM_RESTART_COUNT:-0} -gt 0 ] || exit 1",
        f"  SUBMITIT_EXECUTOR=slurm {asked.python} -m jobs.node.requeue_excluding --requeues {asked.requeues} $blind",
        f"  code=$?; [ $code -ne {REQUEUED} ] || back_to_queue; exit $code",
        "}",
    ]


def _frozen_sources(runs: Sequence[RunFolder]) -> list[str]:
    """Shell commands after which Python imports the source of the run, of the task's own one in an array."""
    if len(runs) == 1:
        return [f"export {name}={shlex.quote(value)}" for name, value in frozen_source(runs[0]).items()]
    return [
        "sources=(\n  " + "\n  ".join(shlex.quote(str(run.source)) for run in runs) + "\n)",
        'export PYTHONPATH="${sources[$SLURM_ARRAY_TASK_ID]}" PYTHONSAFEPATH=1',
    ]


def script(folder: Path, asked: Resources, runs: Sequence[RunFolder], where: str) -> str:
    """The sbatch script, or the command that would run here instead."""
    command = f"{asked.python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    if where != "slurm":
        return f"# on this machine, {asked.gpus} ranks\n{command}\n"
    # submitit has no public function that only writes the script; this one also works where there is no Slurm.
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command, folder, map_count=len(runs) if len(runs) > 1 else None, **parameters(asked, runs)
    )
