"""The kind of a rank's processor and GPU: ranks of another kind may round differently."""

import torch
import torch.distributed as dist

from vit.distributed.world import World, device_name
from vit.run.processor import processor


def device_kind(device: torch.device) -> str:
    """Names of the processor, of the vector instructions that torch uses on it, and of the GPU."""
    return ", ".join([processor(), torch.backends.cpu.get_cpu_capability(), device_name(device)])


def gather_kinds(world: World) -> list[str]:
    """The kinds of the devices of all ranks.  Collective."""
    mine = device_kind(world.device)
    kinds = [mine] * world.size
    dist.all_gather_object(kinds, mine)
    return kinds
