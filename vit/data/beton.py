"""An open `.beton` file: its records of samples, validated, and access to the bytes of the images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit.config.user_error import UserError
from vit.data.dataset_manifest import read_dataset_manifest
from vit.data.ffcv_format import (
    ALLOCATION,
    FIELD,
    FIELDS,
    HEADER,
    JPEG,
    RAW,
    SAMPLE,
    VERSION,
    are_image_and_label,
    field_names,
)  # fmt: skip
from vit.data.storage import Cache, Storage, open_storage
from vit.distributed.world import SINGLE_RANK, World
from vit.run.disk_errors import naming

_ADVICE = "copy the data set again, or write it anew"


@dataclass(frozen=True)
class Beton:
    """An open data set of S samples; arrays are (S,)."""

    path: Path
    classes: list[str]
    names: list[str] | None  # readable name of each class; None: `classes` are readable
    sha256: str  # digest of the whole file, from the manifest
    page_size: int  # bytes
    pages: list[str]  # SHA-256 of each page of page_size bytes, from the manifest
    bytes: int  # size of the file
    storage: Storage  # reads the file
    labels: NDArray[np.int64]
    mode: NDArray[np.uint8]  # JPEG or RAW
    height: NDArray[np.int64]  # pixels
    width: NDArray[np.int64]  # pixels
    offset: NDArray[np.int64]  # bytes from the start of the file
    size: NDArray[np.int64]  # bytes

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identifies the data in a checkpoint."""
        return {"sha256": self.sha256, "samples": len(self), "classes": len(self.classes)}


def open_beton(
    path: Path, cache: Cache = "os", world: World = SINGLE_RANK, alive: Callable[[], None] = lambda: None
) -> Beton:
    """Opens a `.beton` file and validates its records: every image lies within the file, every label is a class.

    Raises UserError that names the file and the problem, OSError if it cannot be read.  FFCV's own reader checks
    nothing: it opens a truncated file and then reads out of bounds.
    """
    manifest = read_dataset_manifest(path)
    if not path.exists():
        raise UserError(f"{path} is missing, but its manifest exists; {_ADVICE}")
    if (found := path.stat().st_size) != manifest.bytes:
        raise UserError(f"{path} has {found:,} bytes, but its manifest says {manifest.bytes:,}; {_ADVICE}")
    with naming(path):
        memory = np.memmap(path, np.uint8, "r")
    images_end, samples, table = _read_records(path, memory)
    image = samples["image"]

    # The allocation of each sample is found by its offset, as in FFCV.
    by_offset = np.argsort(table["offset"], kind="stable")
    nearest = np.searchsorted(table["offset"][by_offset], image["offset"]).clip(max=len(table) - 1)
    allocation = table[by_offset[nearest]] if len(table) else np.zeros(len(samples), ALLOCATION)
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    valid = (allocation["offset"] == image["offset"]) & (allocation["offset"] <= images_end)
    valid &= allocation["size"] <= images_end - allocation["offset"]  # a sum could overflow
    valid &= (height > 0) & (width > 0) & (image["mode"] <= RAW)
    valid &= (image["mode"] == JPEG) | (allocation["size"] == 3 * height * width)
    valid &= (samples["label"] >= 0) & (samples["label"] < len(manifest.classes))
    if len(samples) != manifest.samples:
        raise UserError(
            f"{path} is damaged: it has {len(samples)} samples, but its manifest says {manifest.samples}; {_ADVICE}"
        )
    if not valid.all():
        first = int(np.argmin(valid))
        raise UserError(f"{path} is damaged: the record of sample {first} of {len(samples)} is invalid; {_ADVICE}")
    return Beton(
        path=path,
        classes=manifest.classes,
        names=manifest.names,
        sha256=manifest.sha256,
        page_size=manifest.page_size,
        pages=manifest.pages,
        bytes=len(memory),
        storage=open_storage(path, cache, world, alive),
        labels=samples["label"].copy(),
        mode=image["mode"].copy(),
        height=height,
        width=width,
        offset=image["offset"].astype(np.int64),
        size=allocation["size"].astype(np.int64),
    )


def _read_records(path: Path, memory: NDArray[np.uint8]) -> tuple[np.uint64, NDArray[Any], NDArray[Any]]:
    """The offset of the allocation table, where the images end; the samples (S,); the allocation table (S,)."""
    header = _records(path, memory, 0, 1, HEADER)[0]
    fields = _records(path, memory, HEADER.itemsize, int(header["fields"]), FIELD)
    found = field_names(fields)
    if header["version"] != VERSION or not are_image_and_label(found):
        raise UserError(
            f"{path} has version {header['version']} and the fields {found}; "
            f"expected FFCV's version {VERSION} and the fields {FIELDS}"
        )
    samples = _records(path, memory, HEADER.itemsize + fields.nbytes, int(header["samples"]), SAMPLE)
    return header["table"], samples, _records(path, memory, int(header["table"]), len(samples), ALLOCATION)


def _records(path: Path, memory: NDArray[np.uint8], start: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`count` records from byte `start` on: (count,).  Raises UserError if they do not lie within the file."""
    stop = start + count * dtype.itemsize
    if stop > len(memory):
        raise UserError(
            f"{path} is damaged: it has {len(memory):,} bytes, but its records extend to byte {stop:,}; {_ADVICE}"
        )
    return memory[start:stop].view(dtype)
