"""Checkpoints: a folder with its final name is whole, and what is loaded is what was saved, to the last bit.

    checkpoints/step-00012345/
      manifest.json   what is where, with a digest of each tensor; its first line is the digest of the rest
      tensors.bin     the tensors' bytes, one after the other

A checkpoint is written beside its final name, synced to the disk and renamed; an existing one is never touched.
`torch.load` and `torch.distributed.checkpoint` both load flipped bytes without a word; here every digest is checked.
"""

import json
import os
import platform
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FORMAT = "vit-checkpoint-1"


class DamagedError(RuntimeError):
    """A checkpoint whose bytes are not those that were written.  The message names the file and the place."""


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Writes `folder/step-N` so that it is whole or not there at all, and returns it.

    `about` is kept in the manifest, as JSON.  Raises OSError if the disk is full or cannot be written; nothing
    half-made stays.
    """
    final = folder / f"step-{step:08d}"
    if final.exists():
        return final
    aside = folder / f"{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        entries, offset = {}, 0
        with (aside / "tensors.bin").open("wb") as file:
            for name, tensor in tensors.items():
                data = _bytes(tensor)
                entries[name] = {
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": list(tensor.shape),
                    "offset": offset,
                    "crc32": zlib.crc32(data),
                }
                file.write(data)
                offset += len(data)
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "format": FORMAT,
            "step": step,
            "bytes": offset,
            "tensors": entries,
            "about": dict(about),
            "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        text = json.dumps(manifest, indent=1)
        with (aside / "manifest.json").open("w") as file_:
            file_.write(f"{zlib.crc32(text.encode()):08x}\n{text}")
            file_.flush()
            os.fsync(file_.fileno())
        _sync_folder(aside)
        aside.rename(final)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.  Raises DamagedError."""
    try:
        digest, text = (checkpoint / "manifest.json").read_text().split("\n", 1)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DamagedError(f"{checkpoint}/manifest.json cannot be read: {error}") from None
    if f"{zlib.crc32(text.encode()):08x}" != digest:
        raise DamagedError(f"{checkpoint}/manifest.json is not what was written")
    manifest: dict[str, Any] = json.loads(text)
    if manifest["format"] != FORMAT:
        raise ValueError(f"{checkpoint} has format {manifest['format']!r}; {FORMAT} is known")
    return manifest


def load(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, in main memory, and its manifest.  Raises DamagedError; every digest is checked."""
    manifest = read_manifest(checkpoint)
    try:
        data = np.fromfile(checkpoint / "tensors.bin", np.uint8)
    except OSError as error:
        raise DamagedError(f"{checkpoint}/tensors.bin cannot be read: {error}") from None
    if len(data) != manifest["bytes"]:
        raise DamagedError(f"{checkpoint}/tensors.bin has {len(data):,} bytes, not {manifest['bytes']:,}")
    tensors = {}
    for name, entry in manifest["tensors"].items():
        dtype = getattr(torch, entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize
        part = data[entry["offset"] : entry["offset"] + count]
        if zlib.crc32(part.data) != entry["crc32"]:
            raise DamagedError(f"{checkpoint}/tensors.bin: {name}, {count:,} bytes at {entry['offset']:,}, is damaged")
        tensors[name] = torch.from_numpy(part).view(dtype).view(entry["shape"])
    return tensors, manifest


def find(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; half-made and damaged ones have other names."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose digests hold, and a message for each damaged one, which is renamed aside."""
    problems = []
    for checkpoint in find(folder):
        try:
            load(checkpoint)
        except DamagedError as error:
            aside = checkpoint.with_name(f"{checkpoint.name}.damaged-{int(time.time())}")
            checkpoint.rename(aside)
            problems.append(f"{error}; set aside as {aside.name}")
        else:
            return checkpoint, problems
    return None, problems


def prune(folder: Path, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints, and what killed saves left behind."""
    for old in [*find(folder)[keep:], *folder.glob("step-*.tmp")]:
        # Renamed first: a kill in the middle of the removal leaves no checkpoint that looks whole.
        doomed = old if old.suffix == ".tmp" else old.rename(old.with_name(old.name + ".tmp"))
        shutil.rmtree(doomed, ignore_errors=True)


def differences(saved: Mapping[str, Any], current: Mapping[str, Any], accepted: list[str]) -> list[str]:
    """What a resumed run would change of the recipe or the data, a line each; names in `accepted` may change."""
    nothing = object()
    return [
        f"{name}: {saved.get(name, '(absent)')} in the checkpoint, {current.get(name, '(absent)')} now"
        for name in sorted({*saved, *current})
        if saved.get(name, nothing) != current.get(name, nothing) and name not in accepted
    ]


def _bytes(tensor: Tensor) -> memoryview:
    data: NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return data.data


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
