"""How fast the ranks add their gradients: an all-reduce, and the sum in a fixed order that training uses."""

from typing import Any

import torch
import torch.distributed as dist

from vit.distributed.gradients import scratch_size, sum_over_ranks
from vit.distributed.world import World
from vit.node_benchmark.timing import seconds_per_call

CALLS = {"cuda": 20, "cpu": 3}


def measure_sums(world: World, elements: int) -> dict[str, Any]:
    """Of `elements` float32 values, as many as the model has weights: seconds, and bytes per second of a rank.

    The bandwidth is that of NCCL's tests ("bus bandwidth"): each rank sends and receives 2 (W - 1) / W of the bytes.
    """
    values = torch.ones(elements, device=world.device)
    scratch = torch.empty(scratch_size(values, world.size), device=world.device)
    calls = CALLS[world.device.type]

    def figures(seconds: float) -> dict[str, float]:
        sent = 2 * (world.size - 1) / world.size * values.nbytes
        return {"seconds": round(seconds, 6), "gigabytes_per_second": round(sent / seconds / 1e9, 3)}

    reduced = seconds_per_call(lambda: dist.all_reduce(values), world.device, calls)
    values.fill_(1.0)
    fixed = seconds_per_call(lambda: sum_over_ranks(values, world.rank, world.size, scratch), world.device, calls)
    return {"bytes": values.nbytes, "all_reduce": figures(reduced), "fixed_order": figures(fixed)}
