"""What `vit.evaluate --save` writes, for reports and other readers: scores, confusion matrix and worst mistakes.

    runs/vit_b16/evaluation/
      val-step-00012345-ema/         data set, step and weights
        evaluation.json              the fields of `Evaluation`, and what follows from them; see `to_json`
        mistakes/00-sample-417.png   the worst mistakes, the worst first, with the pixels that the model saw

A folder with a final name is whole: it is written aside and renamed.  This module uses only the standard library.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from vit.config.user_error import UserError
from vit.run.disk_errors import naming
from vit.run.fsync import fsync
from vit.run.hints import command

FORMAT = "vit-evaluation-1"
FILE = "evaluation.json"
MISTAKES = "mistakes"  # the folder of the pictures
_PAIRS = 50  # confused pairs in the file


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image with a high probability for a wrong class.  Classes are indices into `Evaluation.classes`."""

    file: str  # the picture, relative to the folder of the evaluation
    sample: int  # index of the image in the data set
    true: int
    predicted: int
    probability: float  # of the predicted class, 0 to 1
    true_probability: float  # of the true class


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """Images of one class that were taken for another."""

    true: int
    predicted: int
    images: int
    share: float  # of all images of the true class


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of one set of weights on one data set."""

    step: int
    weights: str  # "ema" or "last"
    data: str  # path of the data set, as it was given
    data_sha256: str  # its digest
    images: int  # scored
    skipped: int  # damaged images, which are not counted
    limit: int | None  # the run's `data.limit` if it applied: only that many images, the first, were scored
    top1: float  # 0 to 1
    top5: float | None  # None if there are five classes or fewer
    loss: float | None  # cross-entropy without label smoothing; None if it is not finite
    classes: list[str]  # identifiers of the data set's classes, in the order of its labels
    names: list[str]  # readable names of the same classes
    confusion: list[tuple[int, int, int]]  # (true, predicted, images), sorted; only those with at least one image
    mistakes: list[Mistake]  # the worst, with the highest probability first

    def matrix(self) -> list[list[int]]:
        """The confusion matrix: images by true class (row) and predicted class (column)."""
        rows = [[0] * len(self.classes) for _ in self.classes]
        for true, predicted, images in self.confusion:
            rows[true][predicted] = images
        return rows

    @cached_property
    def images_per_class(self) -> list[int]:
        """Scored images of each class."""
        return self._per_class(lambda true, predicted: True)

    @cached_property
    def correct_per_class(self) -> list[int]:
        """Those of them that were classified correctly."""
        return self._per_class(lambda true, predicted: true == predicted)

    @property
    def accuracy_per_class(self) -> list[float | None]:
        """Top-1 accuracy of each class; None for a class without images."""
        pairs = zip(self.correct_per_class, self.images_per_class, strict=True)
        return [correct / images if images else None for correct, images in pairs]

    def most_confused(self, count: int = _PAIRS) -> list[ConfusedPair]:
        """The pairs of classes with the most confused images; of those with equally many, the highest share first."""
        totals = self.images_per_class
        pairs = [
            ConfusedPair(true=true, predicted=predicted, images=images, share=images / totals[true])
            for true, predicted, images in self.confusion
            if true != predicted
        ]
        return sorted(pairs, key=lambda pair: (-pair.images, -pair.share, pair.true, pair.predicted))[:count]

    def to_json(self) -> dict[str, Any]:
        """The content of the file: all fields; per-class figures and confused pairs, for readers without this code."""
        derived = {
            "images_per_class": self.images_per_class,
            "correct_per_class": self.correct_per_class,
            "accuracy_per_class": self.accuracy_per_class,
            "most_confused": [asdict(pair) for pair in self.most_confused()],
        }
        return {"format": FORMAT} | asdict(self) | derived

    def _per_class(self, counted: Callable[[int, int], bool]) -> list[int]:
        out = [0] * len(self.classes)
        for true, predicted, images in self.confusion:
            out[true] += images if counted(true, predicted) else 0
        return out


def folder_name(evaluation: Evaluation) -> str:
    """The name of an evaluation's folder: val-step-00012345-ema."""
    return f"{Path(evaluation.data).stem}-step-{evaluation.step:08}-{evaluation.weights}"


def write_evaluation(folder: Path, evaluation: Evaluation, pictures: dict[str, bytes]) -> Path:
    """Writes an evaluation into a sub-folder, which it returns; replaces an earlier one of the same name.

    `pictures` are the files of its mistakes.  Raises OSError.
    """
    final = folder / folder_name(evaluation)
    aside = [folder / f".{final.name}.{kind}-{os.getpid()}" for kind in ("new", "old")]
    try:
        (aside[0] / MISTAKES).mkdir(parents=True)
        for name, data in (pictures | {FILE: _text(evaluation.to_json()).encode()}).items():
            with naming(aside[0] / name):
                (aside[0] / name).write_bytes(data)
            fsync(aside[0] / name)
        fsync(aside[0] / MISTAKES)
        fsync(aside[0])
        if final.exists():
            final.rename(aside[1])
        aside[0].rename(final)
        fsync(folder)
    finally:
        for path in aside:
            shutil.rmtree(path, ignore_errors=True)
    return final


def _text(content: dict[str, Any]) -> str:
    """A JSON object with one field per line."""
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def find_evaluations(path: Path) -> list[Path]:
    """The evaluations in a folder, sorted by name: itself, its sub-folders, or those of a run.

    Raises OSError if a folder cannot be listed.
    """
    if (path / FILE).exists():
        return [path]
    if (path / "evaluation").is_dir():
        path = path / "evaluation"
    names = sorted(os.listdir(path)) if path.is_dir() else []
    return [path / name for name in names if not name.startswith(".") and (path / name / FILE).exists()]


def read_evaluation(folder: Path) -> Evaluation:
    """Reads an evaluation.  Raises UserError if it is damaged or of a newer version, OSError if it cannot be read."""
    path = folder / FILE
    with naming(path):
        raw = path.read_bytes()
    try:
        content: Any = json.loads(raw)
        found = content["format"]
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path, f"it is not a JSON object with a format ({error})") from None
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found!r}, but this version reads only {FORMAT}; use the version that wrote it, or "
            f"write it again with {command('vit.evaluate', 'RUN --save')}"
        )
    try:
        values = {field.name: content[field.name] for field in fields(Evaluation)}
        mistakes = [Mistake(**mistake) for mistake in values["mistakes"]]
        confusion = [(int(true), int(predicted), int(n)) for true, predicted, n in values["confusion"]]
        evaluation = Evaluation(**(values | {"mistakes": mistakes, "confusion": confusion}))
        problem = _inconsistency(evaluation)
    except KeyError as error:
        raise _damaged(path, f"it has no {error}") from None
    except (ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from None
    if problem:
        raise _damaged(path, problem)
    return evaluation


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; write it again with {command('vit.evaluate', 'RUN --save')}")


def _inconsistency(found: Evaluation) -> str:
    """What does not fit together in a file, so that readers can use it without checks of their own; "" if all does."""
    known = range(len(found.classes))
    total = sum(images for _, _, images in found.confusion)
    pairs = [(true, predicted) for true, predicted, _ in found.confusion]
    pairs += [(each.true, each.predicted) for each in found.mistakes]
    checks = {
        "a score is not a number": all(isinstance(n, int | float | None) for n in (found.top1, found.top5, found.loss)),
        f"it has {len(found.names):,} names of {len(found.classes):,} classes": len(found.names) == len(found.classes),
        "it has images of a class that it does not name": all(t in known and p in known for t, p in pairs),
        f"its confusion matrix has {total:,} images of {found.images:,}": total == found.images,
        f"the picture of a mistake is not in {MISTAKES}/": all(
            Path(each.file).parts[:-1] == (MISTAKES,) for each in found.mistakes
        ),
    }
    return next((problem for problem, holds in checks.items() if not holds), "")
