"""vit.train with all ranks on one GPU, which exchange their sums over gloo: NCCL refuses two ranks on one GPU.

torchrun --nproc-per-node 4 -m benchmarks.on_gpu.shared_gpu --config … --run-dir …    (arguments of vit.train)

It shows, on one GPU, that sums over 1, 2 and 4 ranks have the same bits, and that saves in parts work.  It cannot show
NCCL, NVLink, or a collective that hangs.
"""

from typing import Any

import torch
import torch.distributed as dist

from vit.distributed import world
from vit.train import main

_init = dist.init_process_group


def init_with_gloo(backend: str, **options: Any) -> None:
    """dist.init_process_group with gloo for all devices."""
    del backend
    options.pop("device_id", None)
    _init(backend="cpu:gloo,cuda:gloo", **options)


if __name__ == "__main__":
    dist.init_process_group = init_with_gloo
    world.pick_device = lambda choice, local_rank=0, local_size=1: torch.device("cuda", 0)
    main()
