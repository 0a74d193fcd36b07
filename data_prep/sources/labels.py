"""Labels as written in a data set, numbers or names, and the classes that follow from them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.source import InputError

MAX_CLASSES = 1_000_000  # without names of the classes; a larger number is no label


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
    if largest >= (len(names) or MAX_CLASSES):
        what = f"label {largest} is not in 0 to {(len(names) or MAX_CLASSES) - 1}"
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
