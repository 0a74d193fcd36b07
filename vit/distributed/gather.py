"""Small results of all ranks on the host, in one collective and one wait for the device."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vit.distributed.world import World


def gather_on_host(world: World, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of each tensor, (n,) of 4 or 8 bytes an element on the ranks' device, those of all ranks: (ranks, n) on the CPU.

    Collective.  Their bits are sent together, as integers, so that no copy changes a NaN.
    """
    words = [tensor.view(torch.int32) for tensor in tensors]
    mine = torch.cat(words)
    gathered = mine.new_empty(world.size * len(mine))
    dist.all_gather_into_tensor(gathered, mine)
    parts = gathered.cpu().view(world.size, -1).split([len(each) for each in words], dim=1)
    return [
        part.flatten().clone().view(tensor.dtype).view(world.size, len(tensor))  # a copy is aligned to 8 bytes
        for part, tensor in zip(parts, tensors, strict=True)
    ]
