"""The numbers of nodes and GPUs that a run could ask for: those that divide its micro-batches and fit the partition."""

from collections.abc import Callable, Sequence

from jobs.login.sizes import dividing_ranks
from jobs.slurm.tables import PartitionNodes
from vit.config.schema import Config
from vit.config.user_error import UserError

Size = tuple[int, int]  # nodes, GPUs per node
WITHOUT_SLURM = 8  # GPUs of a node, where the nodes are not known


def sizes_on_slurm(
    cfg: Config, groups: Sequence[PartitionNodes], cores: int, fits: Callable[[int, int], None]
) -> list[Size]:
    """As few nodes as possible for each number of ranks; `fits` raises UserError if the partition has too little.

    `cores` are those of each rank; they limit the ranks of a node, as its GPUs do.
    """
    if not groups:
        return [(1, ranks) for ranks in dividing_ranks([cfg]) if ranks <= WITHOUT_SLURM]
    most = max(min(group.gpus if cfg.device != "cpu" else group.cpus, group.cpus // cores) for group in groups)
    out = list[Size]()
    for ranks in dividing_ranks([cfg]):
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
    return [(1, ranks) for ranks in dividing_ranks([cfg]) if ranks <= devices]
