"""What a node has: versions of the driver and the libraries, its devices, and how they are connected."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.distributed.world import World, device_name
from vit.node_benchmark.timing import seconds_per_call

MATRIX = 8192  # side of the matrices of the measured product, on a GPU
CPU_MATRIX = 1024


def describe(world: World) -> dict[str, Any]:
    """Names and versions, of this rank's node."""
    out: dict[str, Any] = {
        "device": device_name(world.device),
        "nodes": world.size // world.local_size,
        "ranks": world.size,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "host": platform.node(),
    }
    if world.device.type != "cuda":
        return out
    properties = torch.cuda.get_device_properties(world.device)
    version: tuple[int, ...] = torch.cuda.nccl.version()
    return out | {
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, version)),
        "memory": properties.total_memory,
        "peers": _direct_peers(world),
    }


def _driver() -> str:
    """The version of NVIDIA's driver; empty if the system does not tell."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return ""


def _direct_peers(world: World) -> int:
    """The GPUs of this node whose memory this rank's GPU accesses directly, through NVLink or PCIe."""
    own = world.device.index or 0
    others = [i for i in range(torch.cuda.device_count()) if i != own]
    return sum(torch.cuda.can_device_access_peer(own, i) for i in others)


def teraflops(world: World, precision: str) -> float:
    """1e12 FLOP/s of the product of two large matrices in the precision of the run."""
    side = MATRIX if world.device.type == "cuda" else CPU_MATRIX
    kind = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = _matrices(side, kind, world)
    return 2e-12 * side**3 / seconds_per_call(lambda: a @ b, world.device)


def _matrices(side: int, kind: torch.dtype, world: World) -> Iterator[Tensor]:
    """Two matrices of normally distributed values: zeros would need less power, and be faster."""
    generator = torch.Generator(world.device).manual_seed(0)
    for _ in range(2):
        yield torch.randn(side, side, generator=generator, device=world.device).to(kind)
