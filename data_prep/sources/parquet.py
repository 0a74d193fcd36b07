"""Parquet files of images, as Hugging Face's `datasets` writes them: an image column and a label column.

The images are read in place, one row at a time (parquet_rows.py).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.file_patterns import expand_files
from data_prep.sources.joined import Joined
from data_prep.sources.labels import number_classes, read_classes
from data_prep.sources.parquet_rows import Row
from data_prep.sources.source import InputError, Source

SUFFIX = ".parquet"
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


class _Rows(Sequence[Row]):
    """The rows of one file, one image in each."""

    def __init__(self, path: str, column: str, rows: int) -> None:
        self._path, self._column, self._rows = path, column, range(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[row] for row in self._rows[index]]
        return Row(self._path, self._column, self._rows[index])


def parquet(
    patterns: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Path | None = None,
) -> Source:
    """The rows of parquet files, in their order; `patterns` are files, folders or globs.

    The columns are found by their names and types if they are not given.  The class names come from the files, or from
    `classes`, one per line.  Raises InputError if a file is damaged, has other columns than the first one, or has a
    row without a label; whether a row has an image is not known before it is read.
    """
    paths = expand_files(patterns, SUFFIX)
    names: tuple[str, ...] | None = tuple(read_classes(classes)[0]) if classes else None
    images: list[_Rows] = []
    labels = []
    for path in paths:
        with _open(path) as file:
            image_column = image_column or _find_image_column(path, file)
            _check_image_column(path, file, image_column)
            label_column = label_column or _find_label_column(path, file, image_column)
            labels.append(_read_labels(path, file, label_column))
            images.append(_Rows(path, image_column, file.metadata.num_rows))
            if classes is None:
                found = _class_names(path, file, label_column)
                if names is not None and found != names:
                    raise InputError(f"{path}: its class names are not those of {paths[0]}; give files of one data set")
                names = found
    if not any(map(len, images)):
        raise InputError(f"{paths[0]}: has no rows; give the files of a split that has images")
    numbers = [each for each in labels if isinstance(each, np.ndarray)]
    if numbers and len(numbers) < len(labels):
        raise InputError(f"{paths[0]}: column {label_column} has numbers in some files and texts in others")
    values = np.concatenate(numbers) if numbers else [text for each in labels for text in each]
    all_classes, all_labels = number_classes(values, names or (), f"{paths[0]}: column {label_column}")
    return Source(all_classes, Joined(images), all_labels)


def _open(path: str) -> Any:
    """A pyarrow.parquet.ParquetFile.  Raises InputError if pyarrow is not installed or the file is not readable."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("parquet files need pyarrow, which is not installed; pip install 'pyarrow>=21,<27'") from None
    try:
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); download it again")


def _features(file: Any) -> dict[str, Any]:
    """The types of the columns as `datasets` describes them, if it has written the file."""
    try:
        found = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def _columns(file: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in file.schema_arrow)


def _find_image_column(path: str, file: Any) -> str:
    names, features = file.schema_arrow.names, _features(file)
    found = [name for name in names if features.get(name, {}).get("_type") == "Image"]
    found = [name for name in _IMAGE_COLUMNS if name in (found or names)] or found
    if not found:  # a single column of a suitable type
        found = [name for name in names if _is_image_type(file.schema_arrow.field(name).type)]
    if len(found) != 1 and not (found and found[0] in _IMAGE_COLUMNS):
        what = f"{len(found) or 'no'} columns may be the images; its columns are {_columns(file)}"
        raise InputError(f"{path}: {what}; choose one with --image-column")
    return str(found[0])


def _find_label_column(path: str, file: Any, image_column: str) -> str:
    names, features = file.schema_arrow.names, _features(file)
    found = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    found = [name for name in _LABEL_COLUMNS if name in (found or names)] or found
    if len(found) != 1 and not (found and found[0] in _LABEL_COLUMNS):
        what = f"{len(found) or 'no'} columns may be the labels; its columns are {_columns(file)}"
        raise InputError(f"{path}: {what}; choose one with --label-column")
    return str(found[0])


def _is_image_type(kind: Any) -> bool:
    """Whether it is bytes, or a struct with a field `bytes` of bytes, as `datasets` stores images."""
    from pyarrow import types

    if types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        kind = fields.get("bytes")
    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def _check_image_column(path: str, file: Any, name: str) -> None:
    schema = file.schema_arrow
    if name not in schema.names:
        raise InputError(f"{path}: has no column {name}; its columns are {_columns(file)}; see --image-column")
    if not _is_image_type(schema.field(name).type):
        what = f"column {name} is {schema.field(name).type}, not an image: bytes, or a struct with a field bytes"
        raise InputError(f"{path}: {what}; its columns are {_columns(file)}; see --image-column")


def _read_labels(path: str, file: Any, name: str) -> NDArray[np.int64] | list[str]:
    """The labels of all rows, numbers or texts.  Only this column is read."""
    import pyarrow
    from pyarrow import types

    if name not in file.schema_arrow.names:
        raise InputError(f"{path}: has no column {name}; its columns are {_columns(file)}; see --label-column")
    kind = file.schema_arrow.field(name).type
    value_kind = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(value_kind) or types.is_large_string(value_kind)
    if not is_text and not types.is_integer(value_kind):
        what = f"column {name} is {kind}, but labels are integers or strings"
        raise InputError(f"{path}: {what}; its columns are {_columns(file)}; see --label-column")
    try:
        column = file.read(columns=[name], use_threads=False).column(0)
        column = column if is_text else column.cast(pyarrow.int64())
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise InputError(
            f"{path}: row {row} has no label in column {name}; remove it, or choose another --label-column"
        )
    return column.to_pylist() if is_text else column.to_numpy()


def _class_names(path: str, file: Any, label_column: str) -> tuple[str, ...]:
    """The names that `datasets` stores for a ClassLabel column; empty if there are none."""
    feature = _features(file).get(label_column, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if not names:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"{path}: the class names of column {label_column} are damaged; give others with --classes")
    return tuple(names)
