"""Compares class names in order: of two data sets, of a data set and a checkpoint, of a data set and a model.

Data sets with the same number of classes are not the same: folders `Cat ant bee` and `ant bee cat` give other labels.
This module uses only the standard library, so that a login node can check data sets quickly at every submission.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vit.config.user_error import UserError, first_few

_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def class_differences(one: Sequence[str], other: Sequence[str], where: tuple[str, str]) -> str:
    """The first differences between two lists of classes, which are called `where` in the text; "" if they are equal.

    For example: class 0 is 'ant' in train.beton but 'Cat' in val.beton; only val.beton has 'Cat'
    """
    here, there = where
    moved = [
        f"class {i} is {a!r} in {here} but {b!r} in {there}"
        for i, (a, b) in enumerate(zip(one, other, strict=False))
        if a != b
    ]
    parts = [first_few(moved)] if moved else []
    for (place, names), others in zip(((here, one), (there, other)), (other, one), strict=True):
        if only := _without(names, others):
            parts.append(f"only {place} has {first_few([repr(name) for name in only])}")
    if len(one) != len(other):
        parts.append(f"{here} has {len(one):,} classes, {there} has {len(other):,}")
    return "; ".join(parts)


@dataclass(frozen=True)
class ClassMatch:
    """Which of a model's N classes the D classes of a data set are."""

    how: Literal["order", "number", "name", "index"]  # number: the model has no class names to compare
    model_classes: int  # N
    logits: tuple[int, ...]  # (D,), the model's logit of each class of the data set

    @property
    def is_identity(self) -> bool:
        """Whether class i of the data set is logit i of the model, for all logits."""
        return self.logits == tuple(range(self.model_classes))

    def describe(self) -> str:
        """A line for the user on classes that are not simply the model's; "" if they are."""
        found, of = len(self.logits), self.model_classes
        if self.how in ("order", "number"):
            return ""
        if found == of:
            return f"classes matched by {self.how}"
        return f"{found:,} of the model's {of:,} classes, matched by {self.how}; the other logits are left out"


def match_classes(
    model: Sequence[str] | None, model_classes: int, data: Sequence[str], where: tuple[str, str]
) -> ClassMatch:
    """Finds the classes of a data set among those of a model: by name, or by index if the names are numbers.

    `model` is None if the class names of the model are not known; `where` names the model and the data set in messages.
    Names such as "0" to "999", as in ImageNet-V2 (https://arxiv.org/abs/1902.10811), are indices if they number all of
    the model's classes, or if these are the 1,000 of ImageNet.
    Raises UserError that names the classes that the model does not have.
    """
    here, there = where
    indices = {name: i for i, name in enumerate(model or ())}
    if model is not None and list(model) == list(data):
        return ClassMatch("order", model_classes, tuple(range(len(data))))
    if len(indices) == model_classes and indices.keys() >= set(data):
        return ClassMatch("name", model_classes, tuple(indices[name] for name in data))
    numbers = _numbers(data)
    if numbers and max(numbers) < model_classes and (len(numbers) == model_classes or _is_imagenet(model)):
        return ClassMatch("index", model_classes, tuple(numbers))
    if model is None:
        if len(data) != model_classes:
            raise UserError(
                f"{there} has {len(data):,} classes, but {here} is for {model_classes:,} and has no names of them; "
                "use a data set with the classes of the training set"
            )
        return ClassMatch("number", model_classes, tuple(range(len(data))))
    advice = "write the data set with the names that the classes have in the training set"
    if missing := [repr(name) for name in _without(data, model)]:
        count = f"{len(missing):,} of the {len(data):,} classes of {there}"
        raise UserError(f"{here} does not have {count}: {first_few(missing)}; {advice}, and without others")
    raise UserError(f"{here} has two classes of the same name, so those of {there} cannot be told apart; {advice}")


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The names as different numbers; None if they are not."""
    if not names or not all(name.isascii() and name.isdigit() for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def _is_imagenet(names: Sequence[str] | None) -> bool:
    """Whether these are the classes of ImageNet-1k, in the order in which all libraries number them."""
    return (
        names is not None
        and len(names) == _IMAGENET_CLASSES
        and all(map(_WORDNET_ID.fullmatch, names))
        and list(names) == sorted(names)
    )


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of the names that are not among the others."""
    known = set(others)
    return [name for name in names if name not in known]
