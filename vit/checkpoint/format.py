"""Checkpoints on disk: a folder with its final name is whole, and what is loaded is what was saved, to the last bit.

    checkpoints/step-00012345/
      manifest.json   what is where, with a digest of each tensor; its first line is the digest of the rest
      part-000.bin    the bytes of the tensors that rank 0 wrote, one after the other
      part-001.bin    those that rank 1 wrote, ...

The parts are written beside the final name, in `step-00012345.tmp`, and synced to the disk; then comes the manifest,
then the rename.  `torch.load` and `torch.distributed.checkpoint` load flipped bytes without a word; here every digest
is checked.  No torch at import: the process that writes must start at once.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from vit.run.disk_errors import DAMAGE
from vit.run.fsync import fsync

Layout = Mapping[str, dict[str, Any]]  # of each tensor its dtype, shape, part, offset in the part, and bytes
FORMAT = "vit-checkpoint-2"


class DamagedCheckpointError(RuntimeError):
    """A checkpoint whose bytes are not those that were written.  The message names the file and the place."""


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def write_part(folder: Path, step: int, part: int, data: memoryview, sizes: Sequence[int]) -> list[int]:
    """Writes one rank's part, durably, and returns the digests of its tensors, which are `sizes` bytes each.

    Raises OSError if the disk is full or cannot be written.
    """
    aside = folder / f"{checkpoint_name(step)}.tmp"
    aside.mkdir(parents=True, exist_ok=True)
    with (aside / _part(part)).open("wb", buffering=0) as file, ThreadPoolExecutor(1) as disk:
        _write(file.fileno(), data)
        synced = disk.submit(os.fsync, file.fileno())
        digests = [zlib.crc32(data[end - size : end]) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        synced.result()
    return digests


def commit(
    folder: Path,
    step: int,
    layout: Layout,
    digests: Sequence[Sequence[int]],
    about: Mapping[str, Any],
    logs: Sequence[Path] = (),
) -> Path:
    """Gives a checkpoint whose parts are all written its manifest and its final name, and returns it.

    `digests` are those of each part's tensors, in the layout's order; `about` is kept as it is; `logs`, which tell of
    the steps up to here, are synced before: they are never behind, even if the machine crashes.  Raises OSError.  A
    checkpoint that is there already is never touched.
    """
    aside, final = folder / f"{checkpoint_name(step)}.tmp", folder / checkpoint_name(step)
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        return final
    left = [iter(part) for part in digests]
    manifest = {
        "format": FORMAT,
        "step": step,
        "about": dict(about),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "tensors": {tensor: entry | {"crc32": next(left[entry["part"]])} for tensor, entry in layout.items()},
    }
    text = json.dumps(manifest, indent=1).encode()
    with (aside / "manifest.json").open("wb", buffering=0) as file:
        _write(file.fileno(), memoryview(b"%08x\n%s" % (zlib.crc32(text), text)))
        os.fsync(file.fileno())
    fsync(aside)
    for log in logs:
        if log.exists():
            fsync(log)
    aside.rename(final)
    fsync(folder)
    fsync(folder.parent)  # where the folder's own name may be new
    return final


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.  Raises DamagedCheckpointError, and ValueError for another format."""
    with _readable(checkpoint / "manifest.json"):
        digest, _, text = (checkpoint / "manifest.json").read_bytes().partition(b"\n")
    if b"%08x" % zlib.crc32(text) != digest:
        raise DamagedCheckpointError(f"{checkpoint}/manifest.json is not what was written")
    manifest: dict[str, Any] = json.loads(text)
    if manifest["format"] != FORMAT:
        raise ValueError(f"{checkpoint} has format {manifest['format']!r}; {FORMAT} is known")
    return manifest


def read_tensors(
    checkpoint: Path, manifest: Mapping[str, Any], from_disk: bool = False
) -> Iterator[tuple[str, bytearray]]:
    """The bytes of each tensor, all digests checked.  Raises DamagedCheckpointError.

    `from_disk` has the kernel forget what it remembers of the files, as far as it can.
    """
    parts: dict[int, dict[str, Any]] = {}
    for tensor, entry in manifest["tensors"].items():
        parts.setdefault(entry["part"], {})[tensor] = entry
    for part, tensors in parts.items():
        path, size = checkpoint / _part(part), sum(entry["bytes"] for entry in tensors.values())
        with _readable(path), path.open("rb", buffering=0) as file:
            if from_disk:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise DamagedCheckpointError(f"{path} has {found:,} bytes, not {size:,}")
            for tensor, entry in tensors.items():
                data = bytearray(entry["bytes"])
                _read(file.fileno(), memoryview(data), entry["offset"])
                if zlib.crc32(data) != entry["crc32"]:
                    place = f"{tensor}, {entry['bytes']:,} bytes at {entry['offset']:,}"
                    raise DamagedCheckpointError(f"{path}: {place}, is damaged")
                yield tensor, data


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; half-made and damaged ones have other names."""
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit()), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint is of."""
    return int(checkpoint.name[5:])


def quarantine(checkpoint: Path, error: DamagedCheckpointError) -> str:
    """Renames a damaged checkpoint, so that it never comes back, and returns a message for the log."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged-{time.time_ns() // 1_000_000}")
    try:
        checkpoint.rename(aside)
    except OSError as problem:
        return f"{error}; it cannot be set aside: {problem.strerror}"
    return f"{error}; set aside as {aside.name}"


def prune(folder: Path, keep: int, protected: Collection[int] = ()) -> str | None:
    """Removes all but the `keep` newest checkpoints and those of `protected` steps, if the newest is whole on the disk.

    If it is damaged it is set aside, nothing is removed, and a message says so.
    """
    found = find_checkpoints(folder)
    for newest in found[:1]:
        try:
            for _ in read_tensors(newest, read_manifest(newest), from_disk=True):
                pass
        except DamagedCheckpointError as error:
            return quarantine(newest, error)
    for old in found[keep:]:
        if step_of(old) not in protected:
            # Renamed first: a kill in the middle of the removal leaves no checkpoint that looks whole.
            shutil.rmtree(old.rename(old.with_name(old.name + ".tmp")), ignore_errors=True)
    return None


def discard(folder: Path, step: int) -> None:
    """Removes what a save of this step that failed left behind."""
    shutil.rmtree(folder / f"{checkpoint_name(step)}.tmp", ignore_errors=True)


def clean(folder: Path) -> None:
    """Removes what saves and removals left behind that were killed or failed."""
    for left in folder.glob("step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def differences(saved: Mapping[str, Any], current: Mapping[str, Any], accepted: list[str]) -> list[str]:
    """What a resumed run would change of the recipe or the data, a line each; names in `accepted` may change."""
    nothing = object()
    return [
        f"{name}: {saved.get(name, '(absent)')} in the checkpoint, {current.get(name, '(absent)')} now"
        for name in sorted({*saved, *current})
        if saved.get(name, nothing) != current.get(name, nothing) and name not in accepted
    ]


def _part(number: int) -> str:
    return f"part-{number:03d}.bin"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tells damage from a file system that is only out of order: that one may be well again at the next attempt."""
    try:
        yield
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _read(file: int, data: memoryview, offset: int) -> None:
    while data and (count := os.preadv(file, [data], offset)):
        data, offset = data[count:], offset + count


def _write(file: int, data: memoryview) -> None:
    """All of it: a signal or a disk that is nearly full may take a part."""
    while data:
        data = data[os.write(file, data) :]
