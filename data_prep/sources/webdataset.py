"""WebDataset's shards: tar files in which the files of a sample have one name and different extensions.

Layout: https://github.com/webdataset/webdataset.  The images are read in place.
"""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from data_prep.sources.file_patterns import expand_files
from data_prep.sources.ignored import IgnoredCounter
from data_prep.sources.joined import Joined
from data_prep.sources.labels import number_classes, read_classes
from data_prep.sources.recognize import HIDDEN, has_image_suffix, is_hidden_path
from data_prep.sources.source import InputError, Source
from data_prep.sources.tar import Member, TarImages, list_members, open_tar

SUFFIX = ".tar"
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # as WebDataset: up to the first dot of the file's name
_NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_MAX_LABEL = 16 << 20  # bytes of a .cls or .json file
_THREADS = 16  # they hide the latency of a network file system


class _Shard(NamedTuple):
    images: TarImages
    labels: list[int | str]
    ignored: list[tuple[str, str]]  # reason, and name of a file or sample


def webdataset(patterns: Sequence[str], label_key: str | None = None, classes: Path | None = None) -> Source:
    """The samples of shards in stored order; `patterns` are files, folders, globs, or names like a-{000..146}.tar.

    The label is the text of KEY.cls, a number or the name of a class, or the entry `label_key` ("label" if None) of
    KEY.json; with `label_key`, KEY.cls is not read.  Texts are numbers only if all labels are.  `classes` is a file
    with one class name per line.  Samples without an image are left out and counted.  Raises InputError if a shard is
    damaged, or an image has no label.
    """
    paths = expand_files(patterns, SUFFIX)
    names = tuple(read_classes(classes)[0]) if classes else ()
    with ThreadPoolExecutor(_THREADS) as pool:
        shards = list(pool.map(lambda path: _list_samples(path, label_key), paths))
    ignored = IgnoredCounter()
    for path, shard in zip(paths, shards, strict=True):
        for reason, name in shard.ignored:
            ignored.add(reason, f"{path}: {name}")
    labels = list(chain.from_iterable(shard.labels for shard in shards))
    if not labels:
        raise InputError(f"{paths[0]}: contains no image; give WebDataset's shards")
    if all(isinstance(label, int) or _NUMBER.fullmatch(label) for label in labels):
        labels = list(map(int, labels))
    all_classes, numbers = number_classes(labels, names, paths[0] if len(paths) == 1 else f"{paths[0]}, ...")
    return Source(all_classes, Joined([shard.images for shard in shards]), numbers, ignored=ignored.result())


def _list_samples(path: str, label_key: str | None) -> _Shard:
    with open_tar(Path(path)) as descriptor:
        files: dict[str, dict[str, Member]] = {}
        ignored: list[tuple[str, str]] = []
        for member in list_members(descriptor, path):
            if is_hidden_path(member.name):
                ignored.append((HIDDEN, member.name))
                continue
            match = _KEY.fullmatch(member.name)
            if match is None:
                ignored.append(("files that are not KEY.EXTENSION", member.name))
                continue
            entries = files.setdefault(match[1], {})
            if match[2].lower() in entries:
                raise InputError(f"{path}: contains {member.name} twice; write the shard again")
            entries[match[2].lower()] = member
        images: list[Member] = []
        labels: list[int | str] = []
        for key, entries in files.items():
            found = [entry for kind, entry in entries.items() if "." not in kind and has_image_suffix(kind)]
            if not found:
                ignored.append(("samples without an image", key))
                continue
            if len(found) > 1:
                what = f"{found[0].name} and {found[1].name} are images of the same sample"
                raise InputError(f"{path}: {what}; write shards with one image per sample")
            images.append(found[0])
            labels.append(_read_label(descriptor, path, key, entries, label_key))
    return _Shard(TarImages(Path(path), images), labels, ignored)


def _read_label(descriptor: int, path: str, key: str, entries: dict[str, Member], label_key: str | None) -> int | str:
    """The label of a sample: a number of JSON, or a text, which may be a number too."""
    kind = "cls" if "cls" in entries and label_key is None else "json"
    if kind not in entries:
        wanted = f"{key}.json" if label_key else f"{key}.cls or {key}.json"
        raise InputError(f"{path}: sample {key} has an image but no {wanted}; write the shard again")
    member = entries[kind]
    content = os.pread(descriptor, min(member.size, _MAX_LABEL), member.offset)
    try:
        value: object = content.decode("utf-8").strip()
        if kind == "json":
            fields = json.loads(content)
            value = fields[label_key or "label"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        why = f"has no entry {error}, see --label-key" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise InputError(f"{path}: {member.name}: {why}; correct it") from None
    is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18
    if not is_number and not (isinstance(value, str) and value):
        raise InputError(f"{path}: {member.name}: {str(value)[:60]!r} is not a label, a number or a name; correct it")
    assert isinstance(value, int | str)
    return value
