"""Loads the tensors of a checkpoint into main memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.checkpoint.format import read_manifest, read_tensors


def as_tensor(data: Tensor, entry: Mapping[str, Any]) -> Tensor:
    """Views bytes as the tensor that a layout entry describes, without a copy: (bytes,) -> entry's shape and dtype."""
    count, dtype = math.prod(entry["shape"]), getattr(torch, entry["dtype"])
    return data[: count * dtype.itemsize].view(dtype).view(entry["shape"])


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors of a checkpoint, on the CPU, and its manifest.

    Raises DamagedCheckpointError, OSError if a file cannot be read now, UserError for another format.
    """
    manifest = read_manifest(checkpoint)
    tensors = {}
    for name, data in read_tensors(checkpoint, manifest):
        flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        tensors[name] = as_tensor(flat, manifest["tensors"][name])
    return {name: tensors[name] for name in manifest["tensors"]}, manifest
