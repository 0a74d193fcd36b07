"""Reads a `.beton` as FFCV's own `Loader` would, with every number in it checked first: FFCV checks none."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import jpeg
from data_prep.sources.source import InputError, Pixels
from vit.data.ffcv_format import FIELD, FIELDS, HEADER, PLACE, RAW, SAMPLE, VERSION, field_names


@dataclass(frozen=True, eq=False)
class Beton:
    """What a .beton says of its S samples; the arrays are (S,)."""

    path: Path
    page_size: int  # bytes
    data_start: int  # bytes: where the samples' records end and images may begin
    labels: NDArray[np.int64]
    mode: NDArray[np.int64]  # JPEG or RAW
    height: NDArray[np.int64]  # pixels
    width: NDArray[np.int64]  # pixels
    offset: NDArray[np.int64]  # bytes from the start of the file
    size: NDArray[np.int64]  # bytes

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, descriptor: int, sample: int) -> Pixels:
        """A sample's pixels (height, width, 3), of the file open as `descriptor`; for many threads at once.

        Raises InputError if it is damaged, OSError if it cannot be read.
        """
        height, width, size = (int(column[sample]) for column in (self.height, self.width, self.size))
        content = os.pread(descriptor, size, int(self.offset[sample]))
        if len(content) < size:
            raise InputError("the file ends in it")
        if self.mode[sample] == RAW:
            return np.frombuffer(content, np.uint8).reshape(height, width, 3)
        found = jpeg.baseline_size(content)
        if found != (height, width):  # asked first: the decoder trusts what it is told
            what = f"a JPEG of {found[1]} x {found[0]} pixels" if found else "no baseline JPEG"
            raise InputError(f"is {what}, not one of {width} x {height}")
        pixels = jpeg.pixels(content, height, width)
        if pixels is None:
            raise InputError("is a damaged JPEG")
        return pixels


def open_beton(path: Path, classes: int) -> Beton:
    """Reads what the file says of its samples.

    Raises InputError, which names the first sample that cannot be, if the file is cut short, of another format, with
    other fields than an image and an integer label, or a label is not in 0 to `classes` - 1; OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:

        def records(start: int, count: int, kind: np.dtype[Any], what: str) -> NDArray[Any]:
            if start + count * kind.itemsize > size:
                raise InputError(f"{path}: is cut short or damaged: no room for {count:,} {what} at byte {start:,}")
            file.seek(start)
            return np.frombuffer(file.read(count * kind.itemsize), kind)

        if size < HEADER.itemsize:
            raise InputError(f"{path}: is no FFCV file: {size} bytes are no header")
        header = records(0, 1, HEADER, "header")[0]
        fields_count, samples_count, table_start = (int(header[key]) for key in ("fields", "samples", "table"))
        if header["version"] != VERSION or not 1 <= fields_count <= 256:
            raise InputError(f"{path}: is no FFCV file of version 2")
        fields = records(HEADER.itemsize, fields_count, FIELD, "fields")
        found = field_names(fields)
        if found != FIELDS:
            said = ", ".join(f"{name} ({kind})" for name, kind in found)
            raise InputError(f"{path}: has the fields {said}, not image (image), label (int)")
        start = HEADER.itemsize + fields.nbytes
        samples = records(start, samples_count, SAMPLE, "samples")
        table = records(table_start, samples_count, PLACE, "places of images")

    image = samples["image"]
    by_sample = np.argsort(table["sample"], kind="stable")
    if not np.array_equal(table["sample"][by_sample], np.arange(len(samples), dtype=np.uint64)):
        raise InputError(f"{path}: is damaged: its table does not name each sample once")
    places = table[by_sample]
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    data_start = start + samples.nbytes
    # Compared without sums, which might wrap around.
    outside = (image["offset"] != places["offset"]) | (places["offset"] < data_start) | (places["size"] == 0)
    outside |= (places["offset"] > table_start) | (
        places["size"] > table_start - np.minimum(places["offset"], table_start)
    )
    shapeless = (height == 0) | (width == 0) | (image["mode"] > RAW)
    shapeless |= (image["mode"] == RAW) & (places["size"] != 3 * height * width)
    for wrong, what in (
        (outside, "lies outside of the images"),
        (shapeless, "has an impossible mode or size"),
        ((samples["label"] < 0) | (samples["label"] >= classes), f"has a label that is not in 0 to {classes - 1}"),
    ):
        for sample in np.flatnonzero(wrong)[:1].tolist():
            at = f"{places['offset'][sample]:,}, label {samples['label'][sample]}"
            raise InputError(f"{path}: sample {sample} at offset {at}: {what}")
    return Beton(
        path=path,
        page_size=int(header["page_size"]),
        data_start=data_start,
        labels=samples["label"].copy(),
        mode=image["mode"].astype(np.int64),
        height=height,
        width=width,
        offset=places["offset"].astype(np.int64),
        size=places["size"].astype(np.int64),
    )
