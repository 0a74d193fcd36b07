"""What is checked: the run that would be submitted, and what it would request from the cluster."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace

from jobs.login.cluster_config import ClusterConfig
from jobs.login.resources import Resources
from jobs.login.sizes import RequestedSizes, Size, requested_sizes, runnable
from jobs.login.slurm_queries import (
    NoClusterError,
    SlurmNotFoundError,
    SlurmSettings,
    SlurmUnreachableError,
    slurm_settings,
)
from jobs.login.submit_options import load_cluster
from vit.checkpoint.initial_settings import InitialSettings
from vit.config.schema import Config
from vit.config.user_error import UserError


@dataclass
class Request:
    """The arguments of `doctor.py`, and what its first stage has measured for the later ones."""

    options: Namespace
    cluster: ClusterConfig
    size: Size  # the largest, if several are requested
    runs: Path  # folder of the run folders, absolute
    cfg: Config | None  # None: no --config was given
    initial: InitialSettings  # what the config takes from the weights that the run starts from
    save_seconds: float | None = None  # estimated length of a save; None: not known
    slurm: SlurmSettings | None = None  # None: not installed here, or it does not respond
    slurm_error: str = ""  # why it does not respond; empty: it is not installed here, or not configured
    no_slurm: str = "not installed here"  # if there is neither of them

    def query_slurm(self) -> None:
        """Sets `slurm` or `slurm_error`."""
        try:
            self.slurm = slurm_settings()
            self.size = self._largest_runnable(self.slurm)
        except SlurmUnreachableError as error:
            self.slurm_error = str(error)
        except NoClusterError as error:
            self.no_slurm = str(error)
        except SlurmNotFoundError:
            pass

    def _largest_runnable(self, slurm: SlurmSettings) -> Size:
        """Of several sizes the largest that the partition can run; else the one that was chosen before."""
        requested = requested_sizes(self.options.nodes, self.options.gpus)
        if self.cfg is not None and requested.is_elastic:
            with suppress(UserError):
                sizes = requested.allowed([self.cfg])
                return runnable(sizes, lambda size: self.resources(size).check(slurm.nodes), [])[0]
        return self.size

    def set_save_seconds(self, seconds: float) -> None:
        """Replaces the estimated length of a save by a measured one."""
        self.save_seconds = seconds

    @property
    def ranks(self) -> int:
        """Ranks of the run."""
        return self.size.ranks

    @property
    def requests_slurm(self) -> bool:
        """Whether the arguments only make sense with Slurm."""
        return bool(self.size.nodes > 1 or self.options.cluster_config or self.cluster.partition)

    def resources(self, size: Size | None = None) -> Resources:
        """What the job would request; in another size."""
        size = size or self.size
        gpus = size.gpus
        return Resources(
            nodes=size.nodes,
            gpus=gpus,
            gpu_type=size.gpu_type,
            cpus=gpus * self.cluster.cpus_per_gpu,
            use_gpus=self.cfg is None or self.cfg.device != "cpu",
            cluster=self.cluster,
        )


def read_request(cfg: Config, options: Namespace, initial: InitialSettings) -> Request:
    """Checks the arguments.  Raises UserError."""
    requested = requested_sizes(options.nodes, options.gpus)
    if not options.config and cfg != Config():
        raise UserError("settings of a run require --config FILE")
    runs = options.runs_dir.absolute()
    size = largest_size(requested, cfg if options.config else None)
    return Request(options, load_cluster(options), size, runs, cfg if options.config else None, initial)


def largest_size(requested: RequestedSizes, cfg: Config | None) -> Size:
    """Of several sizes the largest that the run allows: it needs most.  A check tells if it allows none."""
    if cfg is not None and requested.is_elastic:
        with suppress(UserError):
            return requested.allowed([cfg])[0]
    return requested.most
