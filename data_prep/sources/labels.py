"""Labels as written in a data set, numbers or names, and the classes that follow from them; lists of files."""

import glob
import json
import os
import re
import sys
from collections.abc import Sequence
from errno import ENOENT
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.source import InputError

_MAX_CLASSES = 1_000_000
_SPLIT = re.compile(r"(train|test|val|dev)(ing|id|idation)?(?![a-z])", re.IGNORECASE)  # at the start of a file's name
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def read_classes(path: Path) -> tuple[list[str], list[str] | None]:
    """Class identifiers, and their readable names if the file has both.

    A file has one identifier on each line, or is a JSON list of them, or the manifest of another data set.
    Raises InputError if it is none of these or an identifier is there twice.
    """
    names: Any = None
    try:
        text = path.read_text(encoding="utf-8-sig")
        content: Any = json.loads(text) if text.lstrip()[:1] in ("[", "{") else text.rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a text file with one class on each line") from None
    if isinstance(content, dict):
        content, names = content.get("classes"), content.get("names")
    if not isinstance(content, list) or not content or not all(isinstance(each, str) for each in content):
        raise InputError(f"{path}: has no list of classes; give a text file with one class on each line")
    classes = [each.strip() for each in content]
    seen: dict[str, int] = {}
    for number, name in enumerate(classes):
        if not name:
            raise InputError(f"{path}: class {number} has no name; write one class on each line, without empty lines")
        if name in seen:
            why = f"classes {seen[name]} and {number} are both called {name}"
            raise InputError(f"{path}: {why}; data sets are compared by these names: make them different")
        seen[name] = number
    return classes, names if isinstance(names, list) and len(names) == len(classes) else None


def number_classes(
    values: Sequence[int | str] | NDArray[np.int64], names: Sequence[str], where: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes, and the label of each sample: (S,) values -> classes and (S,) labels.

    Numbers keep their value: they count the classes `names`, or "0", "1", ... without `names`.  Texts are members of
    `names`, or their sorted set is the classes.  `where` names the data set in the InputError for bad ones.
    """
    if isinstance(values, np.ndarray) or all(isinstance(value, int) for value in values):
        return _number_numbers(np.asarray(values, np.int64), tuple(names), where)
    texts = [str(value) for value in values]
    classes = tuple(names) or tuple(sorted(set(texts)))
    label_of = {name: label for label, name in enumerate(classes)}
    if unknown := [text for text in texts if text not in label_of]:
        advice = "correct the list of classes"
        raise InputError(f"{where}: label {unknown[0]!r} is not one of the {len(classes)} classes; {advice}")
    return classes, np.array([label_of[text] for text in texts], np.int64)


def _number_numbers(
    labels: NDArray[np.int64], names: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    smallest, largest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if smallest < 0:
        what = f"a sample has label {smallest}, which usually means that there are no labels, as in some test sets"
        raise InputError(f"{where}: {what}; give files with labels")
    if largest >= (len(names) or _MAX_CLASSES):
        what = f"label {largest} is not in 0 to {(len(names) or _MAX_CLASSES) - 1}"
        raise InputError(f"{where}: {what}; correct the list of classes, or choose another label")
    for label in np.unique(labels).tolist():
        if str(label) in names and names[label] != str(label):
            what = f"label {label} may be class number {label}, which is called {names[label]}, or the class {label}"
            raise InputError(f"{where}: {what}; give the classes other names, or list them in the order of the labels")
    classes = names or tuple(map(str, range(largest + 1)))
    if not names and (unused := sorted(set(range(largest + 1)) - set(labels.tolist()))):
        shown = ", ".join(map(str, unused[:3])) + (f" and {len(unused) - 3:,} more" if len(unused) > 3 else "")
        print(f"note: {where}: no sample has label {shown}; such a class stays empty", file=sys.stderr, flush=True)
    return classes, labels


def expand_files(patterns: Sequence[str], suffix: str) -> list[str]:
    """The files that names, folders (their files with `suffix`), globs and shard-{000..146} stand for, in that order.

    Raises InputError if there is no such file, if one is listed twice, or if a folder has files of several splits.
    """
    found: list[str] = []
    for pattern in patterns:
        for name in [pattern] if os.path.lexists(pattern) else _expand_braces(pattern):
            if os.path.isdir(name):
                files = sorted(glob.glob(os.path.join(glob.escape(name), f"*{suffix}")))
                _check_split(name, files)
            elif os.path.lexists(name):
                files = [name]
            else:
                files = sorted(glob.glob(name, recursive=True))
            if not files:
                what = f"contains no {suffix} file" if os.path.isdir(name) else "no such file"
                missing = FileNotFoundError(ENOENT, os.strerror(ENOENT), name)
                raise InputError(f"{name}: {what}; give {suffix} files, a folder or a pattern of them") from missing
            found += files
    if twice := [name for i, name in enumerate(found) if name in found[:i]] if len(set(found)) < len(found) else []:
        raise InputError(f"{twice[0]}: is listed twice; give each file once")
    return found


def _check_split(folder: str, files: Sequence[str]) -> None:
    """Raises InputError if a folder has the files of a training and of a test set, which must not be mixed."""
    starts = [match[1].lower() for file in files if (match := _SPLIT.match(os.path.basename(file)))]
    if found := sorted(set(starts))[1:]:
        what = f"contains the files of several splits, such as {sorted(set(starts))[0]} and {found[0]}"
        raise InputError(f"{folder}: {what}; name those of one, for example with the pattern '{folder}/{starts[0]}*'")


def _expand_braces(pattern: str) -> list[str]:
    """As a shell does: a{08..10} -> a08, a09, a10; {x,y}.tar -> x.tar, y.tar."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, choices = match.groups()
    if choices is None:
        step = 1 if int(first) <= int(last) else -1
        values = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + step, step)]
    else:
        values = choices.split(",")
    return [
        each for value in values for each in _expand_braces(pattern[: match.start()] + value + pattern[match.end() :])
    ]
