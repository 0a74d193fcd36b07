"""What a setting or an option takes, in words, and its value from text: one rule for files and the command line."""

import difflib
import json
import re
import types
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from vit.config.user_error import UserError

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|[-+]?\.?inf|\.?nan", re.IGNORECASE)
ROWS_EXAMPLE = "[[0.5, 128], [0.5, 224]]"
_SHOWN = 100  # characters of a wrong value in a message

# What other libraries call a setting or an option.
_OTHER_NAMES = {
    **{"batch_size": "global_batch", "learning_rate": "optim.lr", "wd": "optim.weight_decay", "amp": "precision"},
    **{"num_workers": "data.workers", "hours": "time", "walltime": "time", "output_dir": "run-dir"},
}


class WrongValueError(ValueError):
    """A text that is not a value of the kind; the message says how to write it, or is empty."""


def convert(value: str | list[Any], kind: Any) -> Any:
    """The value of this kind from text, or from a list for a tuple, with texts in it.  Raises WrongValueError."""
    if get_origin(kind) is tuple:
        return _convert_rows(value) if is_rows(kind) else _convert_list(value, get_args(kind))
    if isinstance(value, list):
        raise WrongValueError("write one value, without brackets")
    if kind is bool:
        return _convert_bool(value)
    if kind is int:
        return _convert_int(value)
    if kind is float:
        return _convert_float(value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise WrongValueError(nearest(value, get_args(kind)))
        return value
    if kind is Path and not value:
        raise WrongValueError("")
    return kind(value)


def is_rows(kind: Any) -> bool:
    """Whether a setting takes a list of any number of rows of numbers."""
    return get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,)


def describe(kind: Any, example: Any = None) -> str:
    """What a setting of this kind takes: `a whole number`, `cls or mean`.  Lists are explained by an example."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if get_origin(kind) in (Union, types.UnionType):
        return describe(next(arg for arg in get_args(kind) if arg is not type(None)), example)
    if get_origin(kind) is Literal:
        return listed(map(str, get_args(kind)))
    if is_rows(kind):
        return f"a list of rows of numbers such as {ROWS_EXAMPLE}"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))} numbers such as {format_list(example)}"
    return words.get(kind, "a value")


def format_list(values: Iterable[Any]) -> str:
    """`[0.08, 1]`, or `[[0.5, 128], [0.5, 224]]`, as it is written in YAML and on the command line."""
    return "[" + ", ".join(format_list(v) if isinstance(v, tuple | list) else f"{v:.4g}" for v in values) + "]"


def listed(words: Iterable[str], conjunction: str = "or") -> str:
    """`a, b or c`."""
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean 'offline'?`, or nothing if no known word is similar."""
    matches = difflib.get_close_matches(word, list(known), 1, cutoff=cutoff)
    return f"did you mean {matches[0]!r}?" if matches else ""


def unknown_setting(name: str, known: Collection[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    leaf = name.rpartition(".")[2].replace("-", "_")  # `lr` means `optim.lr`
    matches = [n for n in known if n.endswith(f".{leaf}") or n == _OTHER_NAMES.get(leaf)]
    suggestion = f"did you mean {matches[0]!r}?" if matches else nearest(name, known)
    return f"unknown setting {name!r}{suggestion and f'; {suggestion}'}  (--help lists all settings)"


def wrong_value(name: str, takes: str, value: object, advice: str = "", about: str = "") -> UserError:
    """The error for a value that is not of the kind: the setting, what it takes, the value, how to write it."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} …"
    return UserError(f"{name} must be {takes}, not {shown}{advice and f'; {advice}'}{about and f'  ({about})'}")


def _convert_bool(value: str) -> bool:
    try:
        return _BOOLEANS[value.lower()]
    except KeyError:
        advice = {"1": "write true", "0": "write false"}.get(value, nearest(value.lower(), ("true", "false")))
        raise WrongValueError(advice) from None


def _convert_int(value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        pass
    try:
        number = float(_convert_float(value))
    except WrongValueError:
        raise WrongValueError(_number_advice(value)) from None
    whole = number == number // 1 and abs(number) < 2**53
    raise WrongValueError(f"write {int(number)}" if whole else "")


def _convert_float(value: str) -> float:
    text = re.sub(r"(?<=\d)_(?=\d)", "", value)
    if not _FLOAT.fullmatch(text):
        try:
            return float(int(text, 0))  # 0x10
        except ValueError:
            raise WrongValueError(_number_advice(value)) from None
    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


def _number_advice(value: str) -> str:
    """How to write what was probably meant."""
    if re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+", value):
        return f"write {value.replace(',', '')}, without commas"
    if re.fullmatch(r"[-+]?\d+,\d+", value):
        return f"write {value.replace(',', '.')}"
    if match := re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+))\s*(%|[A-Za-zµ]+)", value):
        return f"write {float(match[1]) / 100:g}" if match[2] == "%" else f"write {match[1]}, without a unit"
    return ""


def _convert_list(value: str | list[str], kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", value, re.DOTALL)
        items = [item.strip() for item in (match[1] if match else value).split(",")]
        if not match:
            raise WrongValueError(f"write [{', '.join(items)}]" if len(items) == len(kinds) else "")
        value = items
    if len(value) != len(kinds):
        raise WrongValueError("")
    return tuple(convert(item, kind) for item, kind in zip(value, kinds, strict=True))


def _convert_rows(value: str | list[Any]) -> tuple[tuple[int | float, ...], ...]:
    """Rows of numbers, from nested lists of texts or from `[[0.5, 128], [0.5, 224]]`."""
    if isinstance(value, str):
        if not re.fullmatch(r"[\s\[\](),\w.+-]*", value):
            raise WrongValueError("")
        text = re.sub(r"[\w.+-]+", lambda word: f'"{word[0]}"', value.replace("(", "[").replace(")", "]"))
        try:
            value = json.loads(text)
        except ValueError:
            raise WrongValueError("") from None
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise WrongValueError("")
    return tuple(tuple(_convert_number(item) for item in row) for row in value)


def _convert_number(value: Any) -> int | float:
    if not isinstance(value, str):
        raise WrongValueError("")
    number = _convert_float(value)
    return int(number) if number.is_integer() and re.fullmatch(r"[-+]?\d+", value) else number
