"""Writes safetensors files: with the usual permissions, and the same bytes for the same contents."""

import json
from pathlib import Path

import safetensors.torch
from torch import Tensor


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes one file, into one that exists: the library would create it so that only its owner can read it."""
    path.open("wb").close()
    mode = path.stat().st_mode
    safetensors.torch.save_file(tensors, path, metadata)
    path.chmod(mode)
    if metadata:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata, whose order is random."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the header has a fixed place in front of the tensors"
        file.seek(8)
        file.write(text.ljust(size))  # the format allows spaces
