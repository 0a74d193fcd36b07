"""CIFAR-10 and CIFAR-100: 60,000 color images of 32 x 32 pixels, https://www.cs.toronto.edu/~kriz/cifar.html."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.archives import Archive, find_archive, read_archive
from data_prep.sources.source import InputError, Pixels, Source


class _Layout(NamedTuple):
    """The files of one of the two data sets."""

    archive: Archive
    files: dict[str, tuple[str, ...]]  # of each split
    meta: str  # the file with the names of the classes
    keys: dict[str, tuple[str, str]]  # of each target: key of the labels, key of the class names in `meta`


LAYOUTS = {
    "cifar10": _Layout(
        Archive(
            "cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            "cifar-10-batches-py",
        ),
        {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "val": ("test_batch",)},
        "batches.meta",
        {"fine": ("labels", "label_names")},
    ),
    "cifar100": _Layout(
        Archive(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            "cifar-100-python",
        ),
        {"train": ("train",), "val": ("test",)},
        "meta",
        {"fine": ("fine_labels", "fine_label_names"), "coarse": ("coarse_labels", "coarse_label_names")},
    ),
}


def cifar(name: str, split: str, root: Path, target: str = "fine", fetch: bool = True) -> Source:
    """The images of "cifar10" or "cifar100"; `target` "coarse" labels the latter by its 20 superclasses.

    Read from `root`/cifar-10-batches-py (or cifar-100-python), or from the archive in `root`, without unpacking it;
    it is downloaded if it is missing; not without `fetch`.  Raises InputError if a file is damaged, or missing
    without a network.
    """
    layout = LAYOUTS[name]
    label_key, name_key = layout.keys[target]
    files = (layout.meta, *layout.files[split])
    root = root.parent if root.name == layout.archive.top else root
    folder = root / layout.archive.top
    if folder.is_dir():
        where = folder
        contents = {file: _read_file(folder / file) for file in files}
    else:
        where = find_archive(root, layout.archive, fetch)
        archived = read_archive(where, [f"{layout.archive.top}/{file}" for file in files])
        contents = {file: archived[f"{layout.archive.top}/{file}"] for file in files}
    classes: tuple[str, ...] = ()
    images: list[Pixels] = []
    labels: list[NDArray[np.int64]] = []
    for file, content in contents.items():
        try:
            entries = _load_pickle(content)
            if file == layout.meta:
                classes = tuple(map(_text, entries[name_key]))
                continue
            pixels = np.asarray(entries["data"])
            labels.append(np.array(entries[label_key], np.int64))
            if pixels.dtype != np.uint8 or pixels.shape != (len(labels[-1]), 3072):
                raise ValueError(f"{pixels.dtype} pixels of shape {pixels.shape}, {len(labels[-1])} labels")
            images += list(np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))
        except Exception as error:  # a damaged pickle raises many types
            why = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{where}: {file} is damaged ({why[:200]}); download {layout.archive.name} again"
            ) from None
    return Source(classes, images, np.concatenate(labels))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); unpack the archive again") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a name")
    return value


def _load_pickle(content: bytes) -> dict[str, Any]:
    """A dictionary of lists and arrays.  Unlike pickle.load, it can run no code that the file brings along."""
    entries = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(entries, dict):
        raise TypeError("it is not a dictionary")
    return entries


class _ArrayUnpickler(pickle.Unpickler):
    """Allows only what NumPy's arrays consist of."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _new_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return np.ndarray if name == "ndarray" else np.dtype
        if module == "_codecs" and name == "encode":  # how Python 3 writes bytes with the protocol of Python 2
            return _encode_latin1
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


def _new_array(subtype: type, shape: object, kind: object) -> NDArray[Any]:
    """An empty array, whose contents pickle sets next."""
    return np.ndarray((0,), np.uint8)


def _encode_latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")
