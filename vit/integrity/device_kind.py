"""The kind of a rank's processor and GPU: ranks of another kind may round differently."""

import torch

from vit.distributed.world import device_name
from vit.run.processor import processor


def device_kind(device: torch.device) -> str:
    """Names of the processor, of the vector instructions that torch uses on it, and of the GPU."""
    return ", ".join([processor(), torch.backends.cpu.get_cpu_capability(), device_name(device)])
