"""Notices that the images of a source have changed: by their names, sizes and modification times, without reading them.

A manifest keeps four numbers for each class (`by_class`), so that it stays small.  Two of them are sums of hashes: if a
single image was added, the difference of the sums is its hash, which tells its name.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import ELOOP, ENOENT, ENOTDIR
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.source import InputError, Source

U64 = NDArray[np.uint64]

_THREADS = 16  # they hide the latency of a network file system
_CHUNK = 512  # files per task of a thread
_MISSING = (-1, -1)
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What identifies the S images of a source; arrays are (S,)."""

    list_digest: str  # SHA-256 of the names and labels of the samples, in order
    images: U64  # hash of the name and size of each
    stamps: U64  # hash of the name, size and modification time of each
    by_class: dict[str, list[Any]]  # one entry for each class: "images", "bytes", "hashes", "stamps"


def take_fingerprint(source: Source) -> Fingerprint:
    """The fingerprint of a source.  Raises InputError if the size and time of a file cannot be read.

    For images in a tar, the time is that of the tar.  A file that is missing counts as one of -1 bytes.
    """
    root = _root_length(
        [each if isinstance(each, str) else each.path for each in source.images if not isinstance(each, np.ndarray)]
    )
    texts: list[bytes] = []  # what is hashed as the name: paths below the root, so that these do not depend on `./`
    paths: list[str] = []  # of the file whose time counts
    sizes = np.full(len(source.images), -1, np.int64)
    for i, image in enumerate(source.images):
        if isinstance(image, str):
            texts.append(os.fsencode(image[root:]))
            paths.append(image)
        elif isinstance(image, np.ndarray):
            texts.append(image.tobytes())
            paths.append("")
            sizes[i] = image.nbytes
        else:  # in a larger file, whose size counts if that of the image is not known
            texts.append(os.fsencode(f"{image.path[root:]}:{image[1:]}"))
            paths.append(image.path)
            sizes[i] = getattr(image, "size", -1)
    file_sizes, times = _sizes_and_times(paths)
    sizes = np.where(sizes < 0, file_sizes, sizes)
    names = np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), "<u8")
    digest = hashlib.sha256(json.dumps([source.classes, source.names]).encode())
    digest.update(source.labels.astype("<i8").tobytes() + names.tobytes())
    images = _mix(names + _mix(sizes.astype(np.uint64)))
    stamps = _mix(images + _mix(times.astype(np.uint64)))
    count = len(source.classes)
    by_class = {
        "images": np.bincount(source.labels, minlength=count).tolist(),
        "bytes": _sums(source.labels, sizes, count).tolist(),
        "hashes": [f"{value:016x}" for value in _sums(source.labels, images, count).tolist()],
        "stamps": [f"{value:016x}" for value in _sums(source.labels, stamps, count).tolist()],
    }
    return Fingerprint(digest.hexdigest(), images, stamps, by_class)


def _root_length(paths: Sequence[str]) -> int:
    """The length of the common start of all paths, up to the end of a folder's name."""
    return os.path.commonprefix(paths).rfind("/") + 1  # noqa: RUF071 commonpath splits a million paths


def _sizes_and_times(paths: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Size in bytes and modification time in ns of each file: 2 x (S,); each file is looked at once; "" is no file."""
    files = dict.fromkeys(paths)
    files.pop("", None)
    unique = list(files)
    chunks = (unique[start : start + _CHUNK] for start in range(0, len(unique), _CHUNK))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(unique, (pair for pairs in pool.map(_stat_chunk, chunks) for pair in pairs), strict=True))
    found[""] = (0, 0)
    table = np.array([found[path] for path in paths], np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _stat_chunk(paths: Sequence[str]) -> list[tuple[int, int]]:
    return [_size_and_time(path) for path in paths]


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError as error:
        if error.errno in (ENOENT, ELOOP, ENOTDIR):
            return _MISSING
        advice = "check the file system and the permissions, and run the command again"
        raise InputError(f"{path}: cannot be read: {error.strerror}; {advice}") from error
    return stat.st_size, stat.st_mtime_ns


def _mix(values: U64) -> U64:
    """Scrambles 64-bit numbers (splitmix64's finalizer), so that sums of them differ."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _sums(labels: NDArray[np.int64], values: NDArray[Any], classes: int) -> NDArray[Any]:
    """The sum of the values of each class, modulo 2**64: 2 x (S,) -> (classes,)."""
    sums = np.zeros(classes, values.dtype)
    np.add.at(sums, labels, values)
    return sums


def describe_changes(
    source: Source, found: Fingerprint, classes: Sequence[str], recorded: Mapping[str, list[Any]], ignore_times: bool
) -> str:
    """What has changed in a source since `recorded`, the `by_class` of its `classes` at that time; "" if nothing."""
    for what, names in (
        ("new", [name for name in source.classes if name not in set(classes)]),
        ("missing", [name for name in classes if name not in set(source.classes)]),
    ):
        if names:
            shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
            return f"its classes have changed: {shown} {'is' if len(names) == 1 else 'are'} {what}"
    if list(source.classes) != list(classes):
        return "the order of its classes has changed"
    now = found.by_class
    differs = [i for i in range(len(classes)) if any(recorded[key][i] != now[key][i] for key in ("images", "hashes"))]
    if differs:
        changes = list(_class_changes(source, found, recorded, differs[:_SHOWN]))
        more = f" and {len(differs) - _SHOWN:,} more classes" if len(differs) > _SHOWN else ""
        return f"its images have changed: {', '.join(changes)}{more}"
    touched = [i for i in range(len(classes)) if recorded["stamps"][i] != now["stamps"][i]]
    if touched and not ignore_times:
        return (
            f"images have other modification times, with the same names and sizes, in {len(touched):,} of "
            f"{len(classes):,} classes, the first is {classes[touched[0]]}; if they are the same images, for example a "
            "copy of them, add --ignore-times"
        )
    return ""


def _class_changes(
    source: Source, found: Fingerprint, recorded: Mapping[str, list[Any]], labels: Sequence[int]
) -> Iterator[str]:
    """For each of these classes, how many images it has and had, and the image that was added if it is one."""
    for label in labels:
        name, (before, now) = source.classes[label], (each["images"][label] for each in (recorded, found.by_class))
        if before == now:
            same_size = recorded["bytes"][label] == found.by_class["bytes"][label]
            yield f"class {name} has images of other {'names' if same_size else 'names or sizes'}"
            continue
        added = (int(found.by_class["hashes"][label], 16) - int(recorded["hashes"][label], 16)) % 2**64
        of_class = np.flatnonzero((source.labels == label) & (found.images == np.uint64(added)))
        new = f" ({source.describe(int(of_class[0]))} is new)" if now == before + 1 and len(of_class) else ""
        yield f"class {name} has {now:,} images instead of {before:,}{new}"
