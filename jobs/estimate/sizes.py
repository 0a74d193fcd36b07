"""The numbers of nodes and GPUs that a run could ask for: those that divide its micro-batches and fit the partition."""

from collections.abc import Callable, Sequence

from jobs.login.cluster_config import ClusterConfig
from jobs.login.slurm_queries import PartitionNodes
from vit.config.schema import Config
from vit.config.user_error import UserError

Size = tuple[int, int]  # nodes, GPUs per node
WITHOUT_SLURM = 8  # GPUs of a node, where the nodes are not known


def dividing_ranks(cfg: Config) -> list[int]:
    """The numbers of ranks that divide the micro-batches, at every image size."""
    most = min(stage.micro_batches for stage in cfg.stages)
    return [ranks for ranks in range(1, most + 1) if cfg.allows_ranks(ranks)]


def usable(available: Sequence[PartitionNodes], cluster: ClusterConfig) -> list[PartitionNodes]:
    """The nodes of the requested partitions, or of the default one."""
    requested = [name for name in cluster.partition.split(",") if name]
    return [group for group in available if (group.partition in requested if requested else group.default)]


def sizes_on_slurm(
    cfg: Config, groups: Sequence[PartitionNodes], cores: int, fits: Callable[[int, int], None]
) -> list[Size]:
    """As few nodes as possible for each number of ranks; `fits` raises UserError if the partition has too little.

    `cores` are those of each rank; they limit the ranks of a node, as its GPUs do.
    """
    if not groups:
        return [(1, ranks) for ranks in dividing_ranks(cfg) if ranks <= WITHOUT_SLURM]
    most = max(min(group.gpus if cfg.device != "cpu" else group.cpus, group.cpus // cores) for group in groups)
    out = list[Size]()
    for ranks in dividing_ranks(cfg):
        gpus = next((gpus for gpus in range(min(most, ranks), 0, -1) if ranks % gpus == 0), 0)
        if gpus:
            try:
                fits(ranks // gpus, gpus)
            except UserError:
                continue
            out.append((ranks // gpus, gpus))
    return out


def sizes_here(cfg: Config, devices: int) -> list[Size]:
    """The numbers of ranks for the GPUs or the cores of this machine."""
    return [(1, ranks) for ranks in dividing_ranks(cfg) if ranks <= devices]
