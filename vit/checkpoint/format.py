"""The on-disk format of checkpoints: atomic to write, checked with checksums when read.

    checkpoints/step-00012345/
      manifest.json   the layout and a CRC-32 checksum of each tensor; the checksum in its first line is of the rest
      part-000.bin    the bytes of the tensors that rank 0 wrote, one after the other
      part-001.bin    those that rank 1 wrote, ...

A save writes the parts to `step-00012345.tmp` and syncs them to disk, then writes the manifest, then renames the folder
to its final name, so that a folder with a final name is always complete.  `torch.load` and
`torch.distributed.checkpoint` load flipped bytes without an error; here every checksum is verified.  This module does
not import torch, so that the writer process starts quickly.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from vit.config.user_error import UserError
from vit.run.disk_errors import DAMAGED_FILE_ERRORS, is_missing, naming, read_if_exists
from vit.run.fsync import fsync

Layout = Mapping[str, dict[str, Any]]  # for each tensor: dtype, shape, part, offset in the part, and bytes
FORMAT = "vit-checkpoint-3"
READABLE = ("vit-checkpoint-2", FORMAT)  # in format 2, the first line of the manifest is only its checksum, so not JSON


class DamagedCheckpointError(RuntimeError):
    """A checkpoint does not hold the bytes that were written.  The message names the file and the tensor."""


def checkpoint_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def write_part(folder: Path, step: int, part: int, data: memoryview, sizes: Sequence[int]) -> list[int]:
    """Writes and syncs one rank's part; returns the checksums of its tensors, which have `sizes` bytes each.

    Raises OSError if the disk is full or cannot be written.
    """
    temporary = folder / f"{checkpoint_name(step)}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    path = temporary / _part_name(part)
    with naming(path), path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as thread:
        _write_all(file.fileno(), data)
        sync = thread.submit(os.fsync, file.fileno())
        checksums = [zlib.crc32(data[end - size : end]) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        sync.result()
    return checksums


def commit(
    folder: Path,
    step: int,
    layout: Layout,
    checksums: Sequence[Sequence[int]],
    metadata: Mapping[str, Any],
    logs: Sequence[Path] = (),
) -> Path:
    """Writes the manifest of a checkpoint whose parts are all written, renames the folder, and returns its final path.

    `checksums` are those of each part's tensors, in the layout's order.  `metadata` is stored as it is.  `logs` are
    synced before the rename, so that they cover all steps up to this one even if the machine crashes.  Raises OSError.
    An existing checkpoint of the same step is left untouched.
    """
    temporary, final = folder / f"{checkpoint_name(step)}.tmp", folder / checkpoint_name(step)
    if final.exists():
        shutil.rmtree(temporary, ignore_errors=True)
        return final
    remaining = [iter(part) for part in checksums]
    manifest = {
        "format": FORMAT,
        "step": step,
        "about": dict(metadata),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "tensors": {tensor: entry | {"crc32": next(remaining[entry["part"]])} for tensor, entry in layout.items()},
    }
    path = temporary / "manifest.json"
    with naming(path), path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(_with_checksum(manifest)))
        os.fsync(file.fileno())
    fsync(temporary)
    for log in logs:
        if log.exists():
            fsync(log)
    temporary.rename(final)
    fsync(folder)
    fsync(folder.parent)  # the entry of `folder` itself may be new
    return final


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint.

    Raises DamagedCheckpointError, OSError if it cannot be read now, UserError for another format.
    """
    path = checkpoint / "manifest.json"
    with _read_errors(path):
        content = path.read_bytes()
    first, _, rest = content.partition(b"\n")
    if first not in (_first_line(rest), b"%08x" % zlib.crc32(rest)):
        raise DamagedCheckpointError(f"{path} is damaged: its checksum does not match")
    manifest: dict[str, Any] = json.loads(content if first == _first_line(rest) else rest)
    if manifest["format"] not in READABLE:
        raise UserError(
            f"{checkpoint} has format {manifest['format']!r}, but this version reads only {' and '.join(READABLE)}"
        )
    return manifest


def _with_checksum(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as JSON, with the checksum of all other lines as the only entry of its first line."""
    rest = json.dumps(manifest, indent=1).encode().removeprefix(b"{\n")
    return _first_line(rest) + b"\n" + rest


def _first_line(rest: bytes) -> bytes:
    """Nothing in it is free, so that a changed byte is found here too."""
    return b'{"crc32": "%08x",' % zlib.crc32(rest)


def read_tensors(
    checkpoint: Path, manifest: Mapping[str, Any], from_disk: bool = False
) -> Iterator[tuple[str, bytearray]]:
    """Yields the name and the bytes of each tensor after verifying its checksum.

    Raises DamagedCheckpointError, or OSError if it cannot be read now.
    `from_disk` asks the kernel to drop its page cache of the files first, so that the disk itself is read, as far as it
    can.
    """
    parts: dict[int, dict[str, Any]] = {}
    for tensor, entry in manifest["tensors"].items():
        parts.setdefault(entry["part"], {})[tensor] = entry
    for part, tensors in parts.items():
        path, expected_size = checkpoint / _part_name(part), sum(entry["bytes"] for entry in tensors.values())
        with _read_errors(path), path.open("rb", buffering=0) as file:
            if from_disk:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.fileno()).st_size
            if size != expected_size:
                raise DamagedCheckpointError(f"{path} has {size:,} bytes instead of {expected_size:,}")
            for tensor, entry in tensors.items():
                data = bytearray(entry["bytes"])
                _read_all(file.fileno(), memoryview(data), entry["offset"])
                if zlib.crc32(data) != entry["crc32"]:
                    place = f"{tensor}, {entry['bytes']:,} bytes at offset {entry['offset']:,}"
                    raise DamagedCheckpointError(f"{path}: {place}, is damaged: its checksum does not match")
                yield tensor, data


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; without partial and quarantined ones, which have other names.

    Raises OSError if the folder cannot be listed: `Path.glob` would return nothing, which means a new run.
    """
    names = read_if_exists(folder, lambda: os.listdir(folder)) or []
    found = [name for name in names if name.startswith("step-") and name[5:].isdigit()]
    return [folder / name for name in sorted(found, key=lambda name: int(name[5:]), reverse=True)]


def checkpoints_lost(folder: Path, saved_step: int) -> UserError:
    """The error for a run that has saved a step, but has no intact checkpoint any more: it never begins again."""
    return UserError(
        f"{folder} has no intact checkpoint, but step {saved_step:,} of this run was saved; put its checkpoints back, "
        "or start again in a new folder: submit.py --restart, or vit.train with another --run-dir"
    )


def step_of(checkpoint: Path) -> int:
    """The step number of a checkpoint."""
    return int(checkpoint.name[5:])


def quarantine(checkpoint: Path, error: DamagedCheckpointError) -> str:
    """Renames a damaged checkpoint so that it is not loaded again; returns a message for the log."""
    quarantined = checkpoint.with_name(f"{checkpoint.name}.damaged-{time.time_ns() // 1_000_000}")
    try:
        checkpoint.rename(quarantined)
    except OSError as problem:
        return f"{error}; it cannot be quarantined: {problem.strerror}"
    return f"{error}; quarantined as {quarantined.name}"


@dataclass(frozen=True)
class ReadBack:
    """What reading back the newest checkpoint found.  Old checkpoints are removed only if it is intact."""

    step: int | None = None  # of the newest checkpoint, if there is one
    state: Literal["intact", "damaged", "unreadable"] = "intact"
    older: int | None = None  # the step of the checkpoint before it
    problem: str = ""  # what is wrong with it or, if it is intact, why old ones could not be removed


def prune(folder: Path, keep: int, protected: Collection[int] = ()) -> ReadBack:
    """Reads the newest checkpoint back from disk, then removes old ones: not the `keep` newest, nor `protected` steps.

    A damaged one is quarantined, and nothing is removed.  Raises OSError if the folder cannot be read.
    """
    found = find_checkpoints(folder)
    if not found:
        return ReadBack(None, "unreadable", problem=f"{folder} has no checkpoint")
    newest, older = step_of(found[0]), next(map(step_of, found[1:]), None)
    try:
        for _ in read_tensors(found[0], read_manifest(found[0]), from_disk=True):
            pass
    except DamagedCheckpointError as error:
        return ReadBack(newest, "damaged", older, quarantine(found[0], error))
    except OSError as error:
        return ReadBack(newest, "unreadable", older, str(error))
    try:
        for old in found[keep:]:
            if step_of(old) not in protected:
                # Renamed first: if the removal is interrupted, what is left does not look like a complete checkpoint.
                shutil.rmtree(old.rename(old.with_name(old.name + ".tmp")), ignore_errors=True)
    except OSError as error:
        return ReadBack(newest, "intact", older, str(error))
    return ReadBack(newest, "intact", older)


def discard(folder: Path, step: int) -> None:
    """Removes the partial files of a failed save."""
    shutil.rmtree(folder / f"{checkpoint_name(step)}.tmp", ignore_errors=True)


def remove_partial_saves(folder: Path) -> None:
    """Removes what interrupted or failed saves and removals left behind."""
    for partial in folder.glob("step-*.tmp"):
        shutil.rmtree(partial, ignore_errors=True)


def _part_name(part: int) -> str:
    return f"part-{part:03d}.bin"


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Raises DamagedCheckpointError if the file is missing or its file system says that it is damaged.

    All other errors may go away, and are raised as OSError that names the file.
    """
    try:
        with naming(path):
            yield
    except OSError as error:
        if error.errno in DAMAGED_FILE_ERRORS or (isinstance(error, FileNotFoundError) and is_missing(path)):
            raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from None
        raise


def _read_all(file: int, data: memoryview, offset: int) -> None:
    while data and (count := os.preadv(file, [data], offset)):
        data, offset = data[count:], offset + count


def _write_all(file: int, data: memoryview) -> None:
    """Repeats short writes, which a signal or a nearly full disk can cause."""
    while data:
        data = data[os.write(file, data) :]
