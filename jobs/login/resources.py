"""What a job asks for, whether that is there, and how it runs on this machine."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit

from jobs.login.cluster_config import ClusterConfig
from jobs.login.slurm_queries import Offer
from jobs.node.job_spec import GPUS_VARIABLE, SUBMITTER_VARIABLE
from vit.run.folder import RunFolder

FOREVER_MINUTES = 10**6  # of a job on this machine


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks for."""

    nodes: int
    gpus: int  # ranks on each node
    cpus: int  # cores on each node
    gpu_devices: bool  # whether the ranks want real GPUs
    cluster: ClusterConfig
    after: str = ""  # a job that must end well before this one starts
    requeues: int = 3  # after failures, between two checkpoints
    parallel: int = 0  # tasks of an array that may run at a time; 0: all
    folders: tuple[str, ...] = ()  # that a container must see

    def check(self, offers: Sequence[Offer]) -> None:
        """Raises ValueError for what no partition offers, as far as it was asked for by name or by default."""
        if not offers:  # nobody was asked
            return
        wanted = [name for name in self.cluster.partition.split(",") if name]
        names = sorted({offer.partition for offer in offers})
        for name in wanted:
            if name not in names:
                raise ValueError(f"--partition {name}: there is no such partition; there are {', '.join(names)}")
        offers = [o for o in offers if (o.partition in wanted if wanted else o.default)]
        if not offers:
            return
        of = ", ".join(sorted({offer.partition for offer in offers}))
        limits = [offer.minutes for offer in offers]
        most = max((limit for limit in limits if limit is not None), default=0)
        if None not in limits and self.cluster.minutes > most:
            raise ValueError(
                f"--time {self.cluster.time}: a job of partition {of} may take {most} minutes at most (--time {most}); "
                "a run goes on over as many jobs as it takes"
            )
        nodes = Counter[str]()
        for offer in offers:
            nodes[offer.partition] += offer.count
        cluster, gpus = self.cluster, self.gpus if self.asks_gpus else 0
        cores = f"--cpus-per-gpu {cluster.cpus_per_gpu}" if self.gpus else f"job: cpus_per_task {self.cpus}"
        a_node = f"a node of partition {of} has"
        for what, asked, there, why in (
            (f"--nodes {self.nodes}", self.nodes, max(nodes.values()), f"partition {of} has"),
            (f"--gpus {self.gpus}", gpus, max(o.gpus for o in offers), f"--nodes takes several; {a_node} at most"),
            (cores, self.cpus, max(o.cpus for o in offers), f"that is {self.cpus} cores; {a_node} at most"),
            (f"--mem {cluster.mem}", megabytes(cluster.mem), max(o.memory for o in offers), f"in MB, {a_node} at most"),
        ):
            if asked > there:
                raise ValueError(f"{what}: {why} {there}")

    @property
    def asks_gpus(self) -> bool:
        """Whether Slurm is asked for GPUs."""
        return self.gpu_devices and self.cluster.gres != "none"

    @property
    def python(self) -> str:
        """What runs Python on the nodes, as a shell would read it."""
        cluster = self.cluster
        if not cluster.container:
            return shlex.quote(cluster.python or sys.executable)
        binds = [word for folder in self.folders for word in ("--bind", folder)]
        return shlex.join([*shlex.split(cluster.container_exec), *binds, cluster.container, cluster.python or "python"])


def megabytes(text: str) -> int:
    """Of sbatch's --mem: `240G`, or megabytes."""
    number, unit = text.rstrip("BKMGT") or "0", text.lstrip("0123456789")[:1] or "M"
    return int(number) * 1024 ** "MGT".index(unit) if unit != "K" else int(number) // 1024


def local_executor(run: RunFolder, asked: Resources) -> submitit.LocalExecutor:
    """This machine.  The job inherits our environment, which is set here."""
    os.environ.update(frozen_source(run))
    os.environ[SUBMITTER_VARIABLE] = str(os.getpid())
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ[GPUS_VARIABLE] = os.environ["CUDA_VISIBLE_DEVICES"]
    executor = submitit.LocalExecutor(folder=run.jobs)
    executor.update_parameters(timeout_min=FOREVER_MINUTES, gpus_per_node=asked.gpus, stderr_to_stdout=True)
    return executor


def frozen_source(run: RunFolder) -> dict[str, str]:
    """What makes Python import the run's own source, and nothing from the folder it is started in."""
    return {"PYTHONPATH": str(run.source), "PYTHONSAFEPATH": "1"}


def relative(path: Path) -> str:
    """A path as a person would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
