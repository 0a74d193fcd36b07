"""Where each rank runs: its node and its GPU."""

import os
import socket
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.distributed as dist

from vit.distributed.world import World
from vit.run.folder import NODE_VARIABLE


class Place(NamedTuple):
    """Where a rank runs."""

    node: str
    gpu: str  # UUID; empty on a CPU


def gather_places(world: World) -> list[Place]:
    """The places of all ranks.  Collective."""
    mine = Place(node_name(), _gpu_uuid(world.device))
    places = [mine] * world.size
    dist.all_gather_object(places, mine)
    return places


def node_name() -> str:
    """This node's name in its job; without a job, the machine's."""
    return os.environ.get(NODE_VARIABLE) or socket.gethostname()


def _gpu_uuid(device: torch.device) -> str:
    """The UUID of a GPU, as nvidia-smi shows it; empty on a CPU, or if the driver does not tell."""
    if device.type == "cuda":
        with suppress(AttributeError, RuntimeError):
            return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return ""
