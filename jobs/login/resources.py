"""The resources that a job requests, compared with what Slurm's partitions have; the executor for this machine."""

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit

from jobs.login.cluster_config import ClusterConfig
from jobs.node.job_spec import GPUS_VARIABLE, SUBMITTER_VARIABLE
from jobs.node.search_path import search_path
from jobs.slurm.tables import PartitionNodes
from vit.config.paths import shell_word
from vit.config.user_error import UserError
from vit.run.counts import counted
from vit.run.folder import RunFolder

NO_LIMIT_MINUTES = 10**6  # time limit of a job on this machine; submitit requires one


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job requests."""

    nodes: int
    gpus: int  # ranks per node
    cpus: int  # cores per node
    use_gpus: bool  # whether the ranks run on GPUs
    cluster: ClusterConfig
    gpu_type: str = ""  # of GPUs, by its name in Slurm; empty: any
    dependency: str = ""  # id of a job that must succeed before this one starts
    max_requeues: int = 3  # after failures, between two checkpoints
    max_parallel: int = 0  # tasks of an array that may run at the same time; 0: all
    bind_folders: tuple[str, ...] = ()  # host folders that a container needs

    def __post_init__(self) -> None:
        for folder in self.bind_folders if self.cluster.container else ():
            if found := re.search("[:,]", folder):
                raise UserError(f"{folder} contains {found[0]!r}, which separates folders in --bind of the container")
        gres = self.cluster.gres
        if self.gpu_type and (gres == "none" or ":" in gres):
            why = "no GPUs are requested" if gres == "none" else "it names a type already"
            raise UserError(
                f"--gpus {self.gpu_type}:{self.gpus} and gres {gres!r} contradict each other: {why}; use "
                f"{'gres gpu, or --gpus without types' if gres != 'none' else '--gpus without types'}"
            )

    def check(self, available: Sequence[PartitionNodes]) -> None:
        """Raises UserError if the requested partitions, or the default one, cannot run the job."""
        if not available:  # Slurm was not queried
            return
        existing = sorted({group.partition for group in available})
        for name in partitions(self.cluster):
            if name not in existing:
                raise UserError(f"--partition {name}: no such partition; available: {', '.join(existing)}")
        if usable := usable_nodes(available, self.cluster):
            self._check_time(usable)
            self._check_size(usable)

    def _check_time(self, available: Sequence[PartitionNodes]) -> None:
        limits = [group.minutes for group in available]
        limit = max((minutes for minutes in limits if minutes is not None), default=0)
        if None not in limits and self.cluster.minutes > limit:
            raise UserError(
                f"--time {self.cluster.time}: the limit of partition {_names(available)} is {limit} minutes; use "
                f"--time {limit}; a run that needs longer is requeued and resumes"
            )

    def _check_size(self, available: Sequence[PartitionNodes]) -> None:
        nodes = Counter[str]()
        for group in available:
            nodes[group.partition] += group.count
        partition, cluster = f"partition {_names(available)}", self.cluster
        if self.gpu_type and self.requests_gpus:
            available = self._nodes_with_type(available)
        gpus = self.gpus if self.requests_gpus else 0
        cores = f"--cpus-per-gpu {cluster.cpus_per_gpu}" if self.gpus else f"job: cpus_per_task {self.cpus}"
        most_nodes, most_gpus = max(nodes.values()), max(group.gpus for group in available)
        most_cpus, most_memory = max(group.cpus for group in available), max(group.memory for group in available)
        for value, limit, message in (
            (self.nodes, most_nodes, f"--nodes {self.nodes}: {partition} has only {most_nodes}"),
            (
                gpus,
                most_gpus,
                f"--gpus {self.gpus_text}: nodes of {partition} have at most {most_gpus}; use --nodes for more",
            ),
            (
                self.cpus,
                most_cpus,
                f"{cores}: needs {counted(self.cpus, 'core')}, nodes of {partition} have at most {most_cpus}",
            ),
            (
                megabytes(cluster.mem),
                most_memory,
                f"--mem {cluster.mem}: nodes of {partition} have at most {most_memory} MB",
            ),
        ):
            if value > limit:
                raise UserError(message)

    def _nodes_with_type(self, available: Sequence[PartitionNodes]) -> list[PartitionNodes]:
        """The nodes that have GPUs of the requested type, and of these only those GPUs."""
        typed = [replace(group, gpus=dict(group.gpu_types).get(self.gpu_type, 0)) for group in available]
        found = [group for group in typed if group.gpus]
        if not found:
            types = sorted({name for group in available for name, _ in group.gpu_types})
            has = f"types {', '.join(types)}" if types else "no types of GPUs that have names"
            raise UserError(f"--gpus {self.gpu_type}:{self.gpus}: partition {_names(available)} has {has}")
        return found

    @property
    def gpus_text(self) -> str:
        """The GPUs per node as sbatch takes them: `4`, `a100:4`."""
        return f"{self.gpu_type}:{self.gpus}" if self.gpu_type else str(self.gpus)

    @property
    def requests_gpus(self) -> bool:
        """Whether GPUs are requested from Slurm."""
        return self.use_gpus and self.cluster.gres != "none"

    @property
    def python(self) -> str:
        """Shell command that runs Python on the nodes, in the container if there is one."""
        cluster = self.cluster
        if not cluster.container:
            return shlex.quote(cluster.python or sys.executable)
        binds = [word for folder in self.bind_folders for word in ("--bind", folder)]
        return shlex.join([*shlex.split(cluster.container_exec), *binds, cluster.container, cluster.python or "python"])


def partitions(cluster: ClusterConfig) -> list[str]:
    """The requested partitions; none for the default one."""
    return [name for name in cluster.partition.split(",") if name]


def usable_nodes(available: Sequence[PartitionNodes], cluster: ClusterConfig) -> list[PartitionNodes]:
    """The nodes of the requested partitions, or of the default one."""
    names = partitions(cluster)
    return [group for group in available if (group.partition in names if names else group.default)]


def _names(available: Sequence[PartitionNodes]) -> str:
    return ", ".join(sorted({group.partition for group in available}))


def megabytes(text: str) -> int:
    """Megabytes of a value of sbatch's --mem: `240G`, or a number of megabytes."""
    number, unit = text.rstrip("BKMGT") or "0", text.lstrip("0123456789")[:1] or "M"
    return int(number) * 1024 ** "MGT".index(unit) if unit != "K" else int(number) // 1024


def local_executor(run: RunFolder, resources: Resources) -> submitit.LocalExecutor:
    """submitit's executor for this machine.  Its job inherits this process's environment, which is set up here."""
    os.environ.update(PYTHONPATH=search_path(run.source), PYTHONSAFEPATH="1")  # nothing from the working directory
    os.environ[SUBMITTER_VARIABLE] = str(os.getpid())
    os.environ.pop(GPUS_VARIABLE, None)
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ[GPUS_VARIABLE] = os.environ["CUDA_VISIBLE_DEVICES"]
    executor = submitit.LocalExecutor(folder=run.jobs)
    executor.update_parameters(timeout_min=NO_LIMIT_MINUTES, gpus_per_node=resources.gpus, stderr_to_stdout=True)
    return executor


def check_path(path: Path, on_slurm: bool) -> None:
    """Raises UserError for a path of a run folder in which Python, submitit or Slurm would read more than a name."""
    text = str(path)
    for pattern, why in (
        (":", "Python takes ':' for the end of a folder in PYTHONPATH"),
        (r"%\d*[A-Za-z%]", "Slurm and submitit replace it by the job's id or name"),
        (r"[\x00-\x1f\x7f]", "a job script cannot contain it"),
        *([(r"\\", "Slurm treats it as special in names of output files")] if on_slurm else []),
        (r"[\ud800-\udfff]", "it is not valid UTF-8"),
    ):
        if found := re.search(pattern, text):
            raise UserError(f"{text!r} contains {found[0]!r}: {why}; choose another --runs-dir")


def display_path(path: Path) -> str:
    """The path for messages and for other programs: relative if it is below the working directory, quoted if needed."""
    text = _relative(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def command_path(path: Path) -> str:
    """The path as a user must type it for a command of this project: those expand their paths once more."""
    return shell_word(_relative(path))


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
