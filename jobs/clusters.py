"""Where a job may run: on Slurm or on this machine, each through its executor of submitit's."""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from jobs.job import GPUS_VARIABLE, SUBMITTER_VARIABLE
from jobs.slurm import SETUP, TEARDOWN
from vit import config
from vit.config import Config
from vit.ledger import RunFolder

USR2_SECONDS = 120  # before its time limit a job is told; time to save, and for Slurm's own delay of up to a minute
MAX_TIMEOUTS = 10_000  # requeues at the time limit; submitit's own default of 3 would end a long run
FOREVER_MINUTES = 10**6  # of a job on this machine


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks for."""

    nodes: int
    gpus: int  # ranks on each node
    cpus: int  # cores on each node
    gpu_devices: bool  # whether the ranks want real GPUs
    minutes: int  # limit of one job
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None


def detect() -> str:
    """`slurm` where there is a cluster, also one that does not answer just now; else `local`."""
    if shutil.which("srun") is None:
        return "local"
    try:
        probe = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return "slurm"
    # Slurm's tools without a cluster, as a distribution's package leaves them, know of no configuration.
    return "local" if "configuration source" in probe.stderr else "slurm"


def in_queue(run: RunFolder) -> str | None:
    """The run's newest job, if Slurm still has it waiting or running."""
    submitted = run.last("submitted")
    if submitted is None:
        return None
    command = ["squeue", "--noheader", "--jobs", submitted["job"]]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return str(submitted["job"]) if answer.stdout.strip() else None


def slurm(run: RunFolder, asked: Resources) -> submitit.SlurmExecutor:
    """One task a node.  Raises RuntimeError if there is no Slurm here."""
    executor = submitit.SlurmExecutor(folder=run.jobs, max_num_timeout=MAX_TIMEOUTS)
    executor.update_parameters(**slurm_parameters(run, asked))
    return executor


def slurm_parameters(run: RunFolder, asked: Resources) -> dict[str, Any]:
    """The sbatch options, as submitit names them."""
    named: dict[str, Any] = {
        "job_name": run.path.name,
        "time": asked.minutes,
        "nodes": asked.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": asked.gpus if asked.gpu_devices else None,
        "cpus_per_task": asked.cpus,
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "signal_delay_s": USR2_SECONDS,
        "stderr_to_stdout": True,
        "setup": [*SETUP, *(f"export {name}={shlex.quote(value)}" for name, value in frozen_source(run).items())],
        "srun_args": ["--cpus-per-task", str(asked.cpus)],  # Slurm 22.05 to 23.02 do not tell srun
        "teardown": list(TEARDOWN),
        "additional_parameters": {"requeue": True},  # submitit does not ask for it by itself
    }
    return {name: value for name, value in named.items() if value is not None}


def local(run: RunFolder, asked: Resources) -> submitit.LocalExecutor:
    """This machine.  The job inherits our environment, which is set here."""
    os.environ.update(frozen_source(run))
    os.environ[SUBMITTER_VARIABLE] = str(os.getpid())
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ[GPUS_VARIABLE] = os.environ["CUDA_VISIBLE_DEVICES"]
    executor = submitit.LocalExecutor(folder=run.jobs)
    executor.update_parameters(timeout_min=FOREVER_MINUTES, gpus_per_node=asked.gpus, stderr_to_stdout=True)
    return executor


def preview(cfg: Config, run: RunFolder, asked: Resources, where: str) -> str:
    """The resolved config, and the sbatch script or the command that would run it."""
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(run.jobs))}"
    if where == "slurm":
        # submitit has no public function that only writes the script; this one also works where there is no Slurm.
        from submitit.slurm.slurm import _make_sbatch_string

        script = _make_sbatch_string(command, run.jobs, **slurm_parameters(run, asked))
    else:
        script = f"# on this machine, {asked.gpus} ranks\n{command}\n"
    return f"# {run.config}\n{config.to_yaml(cfg)}\n# the job\n{script}"


def frozen_source(run: RunFolder) -> dict[str, str]:
    """What makes Python import the run's own source, and nothing from the folder it is started in."""
    return {"PYTHONPATH": str(run.source), "PYTHONSAFEPATH": "1"}


def relative(path: Path) -> str:
    """A path as a person would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
