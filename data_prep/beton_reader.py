"""Reads a `.beton` as FFCV's `Loader` does, but validates every number in it first: FFCV validates none."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_prep import jpeg
from data_prep.sources.progress import progress
from data_prep.sources.source import InputError, Pixels
from vit.config.user_error import UserError
from vit.data.ffcv_format import (
    ALLOCATION,
    FIELD,
    HEADER,
    JPEG,
    RAW,
    SAMPLE,
    VERSION,
    are_image_and_label,
    field_names,
)  # fmt: skip
from vit.data.native import JpegState, check_jpeg_decoder, decode_jpeg

T = TypeVar("T")

_CHUNK = 64  # images per task of a thread


@dataclass(frozen=True, eq=False)
class BetonIndex:
    """The validated metadata of a .beton with S samples; arrays are (S,)."""

    path: Path
    page_size: int  # bytes
    data_start: int  # bytes: offset of the end of the sample records; images may start here
    labels: NDArray[np.int64]
    mode: NDArray[np.int64]  # JPEG or RAW
    height: NDArray[np.int64]  # pixels
    width: NDArray[np.int64]  # pixels
    offset: NDArray[np.int64]  # bytes from the start of the file
    size: NDArray[np.int64]  # bytes

    def __len__(self) -> int:
        return len(self.labels)

    def read_pixels(self, descriptor: int, sample: int) -> Pixels:
        """The pixels (height, width, 3) of a sample, from the file open as `descriptor`.  Thread-safe.

        Raises InputError if the sample is damaged, OSError if it cannot be read.
        """
        height, width, size = (int(column[sample]) for column in (self.height, self.width, self.size))
        content = os.pread(descriptor, size, int(self.offset[sample]))
        if len(content) < size:
            raise InputError("extends past the end of the file")
        if self.mode[sample] == RAW:
            return np.frombuffer(content, np.uint8).reshape(height, width, 3)
        found = jpeg.baseline_size(content)
        if found != (height, width):  # checked first: the decoder trusts the size it is given
            what = f"a JPEG of {found[1]} x {found[0]} pixels" if found else "not a baseline JPEG"
            raise InputError(f"is {what}; its record says {width} x {height} pixels")
        decoded = decode_jpeg(content, height, width)
        if decoded.state > JpegState.HARMLESS:
            raise InputError(f"is a damaged JPEG ({decoded.message})")
        return decoded.pixels


def decode_in_chunks(beton: BetonIndex, threads: int, decode_chunk: Callable[[int, range], T]) -> Iterator[T]:
    """The results of `decode_chunk`, in order, for a descriptor of the file and each range of samples.

    Raises InputError if there is no decoder for its JPEGs.
    """
    if (beton.mode == JPEG).any():
        try:
            check_jpeg_decoder()
        except UserError as error:
            raise InputError(f"{beton.path}: {error}") from None
    descriptor = os.open(beton.path, os.O_RDONLY)
    chunks = [range(start, min(start + _CHUNK, len(beton))) for start in range(0, len(beton), _CHUNK)]
    pool = ThreadPoolExecutor(threads)
    try:
        with progress(len(beton)) as advance:
            for chunk, result in zip(chunks, pool.map(partial(decode_chunk, descriptor), chunks), strict=True):
                yield result
                advance(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def read_beton_index(path: Path, classes: int) -> BetonIndex:
    """Reads and validates the metadata of a .beton with labels 0 to `classes` - 1.

    Raises InputError, which names the first invalid sample, if the file is truncated or damaged, is not an FFCV file,
    or has other fields than an image and an integer label; OSError if it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < HEADER.itemsize:
            raise InputError(f"{path}: is not an FFCV file: it has only {size} bytes")
        header = _read_records(file, size, 0, 1, HEADER, "header")[0]
        field_count, sample_count, table_start = (int(header[key]) for key in ("fields", "samples", "table"))
        if header["version"] != VERSION or not 1 <= field_count <= 256:
            raise InputError(f"{path}: is not an FFCV file of version {VERSION}")
        fields = _read_records(file, size, HEADER.itemsize, field_count, FIELD, "fields")
        found = field_names(fields)
        if not are_image_and_label(found):
            names = ", ".join(f"{name} ({kind})" for name, kind in found)
            raise InputError(f"{path}: has the fields {names}, not one image and one int, in this order")
        start = HEADER.itemsize + fields.nbytes
        samples = _read_records(file, size, start, sample_count, SAMPLE, "sample records")
        table = _read_records(file, size, table_start, sample_count, ALLOCATION, "table entries")

    by_sample = np.argsort(table["sample"], kind="stable")
    if not np.array_equal(table["sample"][by_sample], np.arange(len(samples), dtype=np.uint64)):
        raise InputError(f"{path}: is damaged: its table does not list each sample once")
    image, table = samples["image"], table[by_sample]
    data_start = start + samples.nbytes
    _validate_samples(path, samples, table, data_start, table_start, classes)
    return BetonIndex(
        path=path,
        page_size=int(header["page_size"]),
        data_start=data_start,
        labels=samples["label"].copy(),
        mode=image["mode"].astype(np.int64),
        height=image["height"].astype(np.int64),
        width=image["width"].astype(np.int64),
        offset=table["offset"].astype(np.int64),
        size=table["size"].astype(np.int64),
    )


def _read_records(
    file: BinaryIO, file_size: int, start: int, count: int, kind: np.dtype[Any], what: str
) -> NDArray[Any]:
    """`count` records at byte `start`.  Raises InputError if the file is too short for them."""
    if start + count * kind.itemsize > file_size:
        why = f"is truncated or damaged: it is too short for {count:,} {what} at byte {start:,}"
        raise InputError(f"{file.name}: {why}")
    file.seek(start)
    return np.frombuffer(file.read(count * kind.itemsize), kind)


def _validate_samples(
    path: Path, samples: NDArray[Any], table: NDArray[Any], data_start: int, table_start: int, classes: int
) -> None:
    """Raises InputError for the first sample with an impossible location, size or label; `table` is in sample order."""
    image = samples["image"]
    height, width = image["height"].astype(np.int64), image["width"].astype(np.int64)
    # Compared without sums of unsigned integers, which might overflow.
    outside = (image["offset"] != table["offset"]) | (table["offset"] < data_start) | (table["size"] == 0)
    outside |= (table["offset"] > table_start) | (
        table["size"] > table_start - np.minimum(table["offset"], table_start)
    )
    bad_shape = (height == 0) | (width == 0) | (image["mode"] > RAW)
    bad_shape |= (image["mode"] == RAW) & (table["size"] != 3 * height * width)
    bad_label = (samples["label"] < 0) | (samples["label"] >= classes)
    for wrong, what in (
        (outside, "its image lies outside the pages of images"),
        (bad_shape, "its mode or size is impossible"),
        (bad_label, f"its label is not in 0 to {classes - 1}"),
    ):
        for sample in np.flatnonzero(wrong)[:1].tolist():
            where = f"sample {sample} at offset {table['offset'][sample]:,} with label {samples['label'][sample]}"
            raise InputError(f"{path}: {where} is damaged: {what}")
