"""The kind of a rank's processor and GPU: ranks of another kind may round differently."""

from contextlib import suppress
from pathlib import Path

import torch

from vit.distributed.world import device_name


def device_kind(device: torch.device) -> str:
    """Names of the processor, of the vector instructions that torch uses on it, and of the GPU."""
    return ", ".join([_processor(), torch.backends.cpu.get_cpu_capability(), device_name(device)])


def _processor() -> str:
    """The processor's model on Linux, else nothing."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return ""
