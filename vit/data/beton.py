"""An open `.beton`: what its records say of each sample, checked against its manifest, and how its bytes are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit.data.dataset_manifest import read_dataset_manifest
from vit.data.ffcv_format import FIELD, FIELDS, HEADER, JPEG, PLACE, RAW, SAMPLE, VERSION, field_names
from vit.data.storage import Cache, Storage, store
from vit.distributed.world import ALONE, World


@dataclass(frozen=True)
class Beton:
    """An open data set.  Arrays hold one entry a sample."""

    path: Path
    classes: list[str]
    sha256: str  # of the whole file, from the manifest
    page_size: int  # bytes
    pages: list[str]  # SHA-256 of each piece of page_size bytes, from the manifest
    bytes: int  # of the whole file
    storage: Storage  # gives its bytes
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
        """What a checkpoint remembers of the data it was trained on."""
        return {"sha256": self.sha256, "samples": len(self), "classes": len(self.classes)}


def open_beton(path: Path, cache: Cache = "os", world: World = ALONE) -> Beton:
    """Opens a `.beton` and checks that it is whole.  Raises ValueError that names the file and what is wrong with it.

    FFCV itself loads a file that is cut short without a word, and then reads out of bounds.
    """
    manifest = read_dataset_manifest(path)
    if not path.exists() or path.stat().st_size != manifest.bytes:
        found = f"{path.stat().st_size:,} bytes" if path.exists() else "missing"
        raise ValueError(f"{path} is {found}; its manifest says {manifest.bytes:,} bytes. Write it again")
    memory = np.memmap(path, np.uint8, "r")
    header = _records(path, memory, 0, 1, HEADER)[0]
    fields = _records(path, memory, HEADER.itemsize, int(header["fields"]), FIELD)
    named = field_names(fields)
    if header["version"] != VERSION or named != FIELDS:
        raise ValueError(f"{path}: expected an FFCV file of version 2 with an image and an integer label, not {named}")
    samples = _records(path, memory, HEADER.itemsize + fields.nbytes, int(header["samples"]), SAMPLE)
    table = _records(path, memory, int(header["table"]), len(samples), PLACE)
    image = samples["image"]

    by_offset = np.argsort(table["offset"], kind="stable")
    nearest = np.searchsorted(table["offset"][by_offset], image["offset"]).clip(max=len(table) - 1)
    place = table[by_offset[nearest]] if len(table) else np.zeros(len(samples), PLACE)
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    whole = (place["offset"] == image["offset"]) & (place["offset"] <= header["table"])
    whole &= place["size"] <= header["table"] - place["offset"]  # their sum might wrap around
    whole &= (height > 0) & (width > 0) & (image["mode"] <= RAW)
    whole &= (image["mode"] == JPEG) | (place["size"] == 3 * height * width)
    whole &= (samples["label"] >= 0) & (samples["label"] < len(manifest.classes))
    if len(samples) != manifest.samples or not whole.all():
        first = int(np.argmin(whole)) if len(samples) == manifest.samples else len(samples)
        raise ValueError(f"{path} is damaged: sample {first} of {manifest.samples} is out of bounds. Write it again")
    return Beton(
        path=path,
        classes=manifest.classes,
        sha256=manifest.sha256,
        page_size=manifest.page_size,
        pages=manifest.pages,
        bytes=len(memory),
        storage=store(path, cache, world),
        labels=samples["label"].copy(),
        mode=image["mode"].copy(),
        height=height,
        width=width,
        offset=image["offset"].astype(np.int64),
        size=place["size"].astype(np.int64),
    )


def _records(path: Path, memory: NDArray[np.uint8], start: int, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """`count` records that begin at byte `start`.  Raises ValueError if the file ends before they do."""
    stop = start + count * kind.itemsize
    if stop > len(memory):
        raise ValueError(f"{path} is damaged: of {len(memory):,} bytes, it refers to byte {stop:,}. Write it again")
    return memory[start:stop].view(kind)
