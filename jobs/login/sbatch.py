"""Submits jobs to Slurm through submitit: one run, or the job array of a sweep."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from jobs.login import held_jobs, run_files
from jobs.login.call_sbatch import UnansweredError, sbatch_heard
from jobs.login.granted import record_granted
from jobs.login.held_jobs import SubmissionError
from jobs.login.resources import Resources, command_path, display_path
from jobs.login.run_folder import shared_folder_warning
from jobs.login.sbatch_environment import sbatch_environment
from jobs.login.slurm_queries import SlurmUnreachableError, rejection_message
from jobs.node.candidates import Candidate
from jobs.node.slurm_commands import RUN_COMMANDS
from jobs.node.slurm_job import REQUEUED, SETUP, TEARDOWN
from jobs.slurm.client import UNSET
from vit.run.command import print_error
from vit.run.counts import counted
from vit.run.folder import RunFolder
from vit.run.hints import command

MAX_TIMEOUTS = 10_000  # requeues at the time limit; submitit's default of 3 would end a long run
# $0: a folder, $1: seconds to wait for it.  Prints the node's name if the folder does not appear.
WAIT_FOR_FOLDER = 'for _ in $(seq $1); do [ -e "$0" ] && exit 0; sleep 1; done; echo $SLURMD_NODENAME; exit 1'


def submit(
    folder: Path, runs: Sequence[RunFolder], sizes: Sequence[tuple[Resources, Sequence[Callable[[], Any]]]]
) -> list[list[str]]:
    """Submits one job for each size, or an array if there are several runs, and records them.

    `sizes` are the resources of each, with the job of each run.  Returns the ids of the jobs of each run.  With several
    sizes no job starts before all are recorded: see held_jobs.py.  Raises SubmissionError, LeftInQueueError.
    """
    known, hold = held_jobs.job_scripts(folder), len(sizes) > 1
    try:
        with sbatch_heard() as told:
            by_size = [_submit_size(folder, resources, runs, jobs, hold) for resources, jobs in sizes]
        if len({ids[0] for ids in by_size}) < len(sizes):
            raise SubmissionError(
                f"Slurm gave two jobs the same number: its controller was restarted; {held_jobs.AGAIN}"
            )
        by_run = [list(ids) for ids in zip(*by_size, strict=True)]
        for run, ids in zip(runs, by_run, strict=True):
            run_files.record_submission(run, _candidates(ids, [resources for resources, _ in sizes]))
        changed = record_granted(runs, by_run, [resources for resources, _ in sizes])
    except BaseException as error:
        try:  # they would be submitted a second time
            held_jobs.cancel(held_jobs.unrecorded_jobs(folder, known, runs[0].source))
        except SlurmUnreachableError as unreachable:
            raise held_jobs.not_canceled(unreachable) from error
        except OSError:
            pass
        if isinstance(error, UnansweredError):
            raise held_jobs.not_canceled(SlurmUnreachableError()) from error
        if isinstance(error, FailedJobError | RuntimeError) and not isinstance(error, SubmissionError):
            raise SubmissionError(rejection_message(str(error), sizes[0][0].cluster)) from error
        raise
    if hold and not {"hold", "H"} & sizes[0][0].cluster.sbatch.keys():  # else the user holds them
        held_jobs.release([ids[0].partition("_")[0] for ids in by_size])
    for remark in told:
        print(f"sbatch: {remark}", file=sys.stderr)
    if changed:
        print_error("submit.py", f"note: this cluster has changed the request: {', '.join(changed)}")
    if warning := shared_folder_warning(folder.parent):
        print_error("submit.py", f"warning: {warning}")
    return by_run


def _submit_size(
    folder: Path, resources: Resources, runs: Sequence[RunFolder], jobs: Sequence[Callable[[], Any]], hold: bool
) -> list[str]:
    """Submits the jobs of one size; returns their ids."""
    options = parameters(resources, runs, hold)
    with sbatch_environment({*options, *options["additional_parameters"]}):
        return [job.job_id for job in executor(folder, resources, runs, hold).submit_array(jobs)]


def _candidates(job_ids: Sequence[str], sizes: Sequence[Resources]) -> list[Candidate]:
    return [Candidate(job, size.nodes, size.gpus, size.gpu_type) for job, size in zip(job_ids, sizes, strict=True)]


def executor(
    folder: Path, resources: Resources, runs: Sequence[RunFolder], hold: bool = False
) -> submitit.SlurmExecutor:
    """submitit's Slurm executor, with one task per node.  Raises RuntimeError if Slurm is not installed here."""
    out = submitit.SlurmExecutor(folder=folder, max_num_timeout=MAX_TIMEOUTS, python=resources.python)
    out.update_parameters(**parameters(resources, runs, hold))
    return out


def parameters(resources: Resources, runs: Sequence[RunFolder], hold: bool = False) -> dict[str, Any]:
    """The sbatch options under submitit's names."""
    cluster = resources.cluster
    name = runs[0].path.name if len(runs) == 1 else runs[0].path.parent.name
    gres = cluster.gres if resources.requests_gpus else ""
    relay = RUN_COMMANDS if hold and cluster.container else ()  # jobs of several sizes tell Slurm about each other
    options: dict[str, Any] = {
        "job_name": name,
        "time": cluster.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": (resources.gpus_text if resources.gpu_type else resources.gpus)
        if resources.requests_gpus and not gres
        else None,
        "gres": f"{gres}:{resources.gpus_text}" if gres else None,
        "cpus_per_task": resources.cpus,
        "signal_delay_s": cluster.signal_seconds,
        "stderr_to_stdout": True,
        "setup": [*SETUP, *cluster.setup_commands(), UNSET, *_source_exports(runs), *relay, *_folder_check(resources)],
        "srun_args": ["--cpus-per-task", str(resources.cpus)],  # srun of Slurm 22.05 to 23.02 does not inherit it
        "teardown": list(TEARDOWN),
        "array_parallelism": resources.max_parallel or len(runs),
        "dependency": f"afterok:{resources.dependency}" if resources.dependency else None,
        **{
            key: getattr(cluster, key) or None
            for key in ("partition", "account", "qos", "constraint", "exclude", "mem")
        },
        "exclusive": cluster.exclusive or None,
        "additional_parameters": {
            "requeue" if cluster.requeue else "no-requeue": True,  # submitit sets neither
            **({"hold": True} if hold else {}),
            **({"reservation": cluster.reservation} if cluster.reservation else {}),
            **({"kill-on-invalid-dep": "yes"} if resources.dependency else {}),
            **{key: value or True for key, value in cluster.sbatch.items()},
        },
    }
    return {name: value for name, value in options.items() if value is not None}


def _folder_check(resources: Resources) -> list[str]:
    """Shell commands that check that every node sees the run folder.

    A node that does not cannot report it, because its logs would be in that folder.  At the first start of the job this
    is an error that the user must fix; after a requeue a node may have lost its mount, or may mount the folder late.
    """
    if resources.nodes == 1:
        return []
    requeue = f"{resources.python} -m jobs.node.requeue_excluding --requeues {resources.max_requeues}"
    return [
        f"blind=$(srun --ntasks-per-node 1 sh -c '{WAIT_FOR_FOLDER}' \"$source\""
        " $((SLURM_RESTART_COUNT ? 30 : 5))) || {",
        '  echo ${blind:-a node} does not see "$source: choose a --runs-dir that all nodes share"',
        "  [ ${SLURM_RESTART_COUNT:-0} -gt 0 ] || exit 1",
        f"  SUBMITIT_EXECUTOR=slurm {requeue} $blind",
        f"  code=$?; [ $code -ne {REQUEUED} ] || back_to_queue; exit $code",
        "}",
    ]


def _source_exports(runs: Sequence[RunFolder]) -> list[str]:
    """Shell commands that make Python import the source in the run folder; in an array, that of the task's run.

    PYTHONPATH keeps what the user or a module has set; with PYTHONSAFEPATH nothing comes from the working directory.
    """
    names = [shlex.quote(str(run.source)) for run in runs]
    one, several = [f"source={names[0]}"], ["sources=(\n  " + "\n  ".join(names) + "\n)"]
    several.append('source="${sources[$SLURM_ARRAY_TASK_ID]}"')
    export = 'export PYTHONPATH="$source${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1'
    return [*(one if len(runs) == 1 else several), export]


def script(folder: Path, resources: Resources, runs: Sequence[RunFolder], backend: str, hold: bool = False) -> str:
    """The sbatch script; without Slurm, the command that would run on this machine."""
    command = f"{resources.python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    if backend != "slurm":
        return f"# on this machine, {counted(resources.gpus, 'rank')}\n{command}\n"
    # submitit has no public function that returns the script; this one also works without Slurm.
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command, folder, map_count=len(runs) if len(runs) > 1 else None, **parameters(resources, runs, hold)
    )


def job_hints(run: RunFolder, job_ids: Sequence[str]) -> str:
    """Commands for the jobs of a run in the queue."""
    several = len(job_ids) > 1
    return (
        f"  job{'s   ' if several else '    '} {' '.join(job_ids)}\n"
        f"  watch   tail -F {display_path(run.logs)}/rank-0.log\n"
        f"  status  {command('jobs/status.py', command_path(run.path))}\n"
        f"  stop    scancel {' '.join(job_ids)}   (run the same command to resume)"
    )


def sweep_hints(folder: Path, job_ids: Sequence[Sequence[str]]) -> str:
    """Commands for the job arrays of a sweep, given the jobs of each run."""
    arrays = list(dict.fromkeys(job.partition("_")[0] for run_ids in job_ids for job in run_ids))
    return (
        f"  job{'s   ' if len(arrays) > 1 else '    '} {' '.join(arrays)}\n"
        f"  watch   {command('jobs/status.py', command_path(folder), '--watch')}\n"
        f"  stop    scancel {' '.join(arrays)}; one of the runs: scancel {' '.join(job_ids[-1])}   "
        "(run the same command to resume)"
    )
