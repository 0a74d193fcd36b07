"""The files that names, folders and patterns on the command line stand for."""

import glob
import os
import re
from collections.abc import Sequence
from errno import ENOENT

from data_prep.sources.source import InputError

_SPLIT = re.compile(r"(train|test|val|dev)(ing|id|idation)?(?![a-z])", re.IGNORECASE)  # at the start of a file's name
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


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
