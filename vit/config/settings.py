"""The settings of a YAML file and of the command line, each checked where it stands.

Every error names the setting, what it takes, the value and its place: the file's line, or the option.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_type_hints

import yaml

from vit.config import yaml_text
from vit.config.help_texts import described_fields
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.config.values import WrongValueError, convert, describe, is_rows, unknown_setting, wrong_value

EXAMPLE = "epochs: 90"


@cache
def kinds() -> Mapping[str, Any]:
    """Maps each setting's dotted name to its type."""
    out = dict[str, Any]()
    for name, kind in get_type_hints(Config).items():
        parts = get_type_hints(kind) if is_dataclass(kind) else {}
        out |= {f"{name}.{leaf}": part for leaf, part in parts.items()} or {name: kind}
    return out


def sections() -> set[str]:
    """`model`, `optim`, …"""
    return {name.partition(".")[0] for name in kinds() if "." in name}


def read_file(text: str, source: str, options: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a YAML file's settings, and where each stands.  Raises UserError.

    The message is another one for names of the command's own `options`.
    """
    node = yaml_text.compose(text, source)
    if not isinstance(node, yaml.MappingNode):
        raise yaml_text.not_a_mapping(node, source, EXAMPLE)
    values, places = dict[str, Any](), dict[str, str]()

    def read(mapping: yaml.MappingNode, prefix: str) -> None:
        for key, at, value in yaml_text.entries(mapping, source, prefix):
            name, where = prefix + key, yaml_text.place(at, source)
            if name in sections() and not prefix:
                read(_section(name, value, where), f"{name}.")
                continue
            if name not in kinds():
                raise UserError(f"{where}: {_unknown(name, value, options)}")
            if name in places:
                raise UserError(f"{where}: {name} is already set in {places[name]}; remove one")
            places[name] = where
            values[name] = _from_node(name, value, source, where)

    read(node, "")
    return values, places


def check_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line with its settings written as `--name=value`, and which of them there are.  Raises UserError.

    `--config` comes first, because the settings override it wherever they stand.
    """
    first, out, given = [], [], dict[str, str]()
    remaining = list(arguments)
    while remaining:
        option, sign, value = remaining.pop(0).partition("=")
        name = option.removeprefix("--")
        if option == name or (name not in kinds() and name not in sections() and name != "config"):
            out.append(option + sign + value)
            continue
        if name in sections():
            example = next(known for known in kinds() if known.startswith(f"{name}."))
            raise UserError(f"{option} is a section of settings; set one of them, such as --{example}")
        if not sign:
            if not remaining or remaining[0].startswith("--"):
                takes = "give a YAML file, such as configs/demo.yaml" if name == "config" else _takes(name)
                raise UserError(f"{option} has no value; {takes}")
            value = remaining.pop(0)
        if name == "config":
            first.append(f"--config={value}")
            continue
        out.append(f"{option}={_canonical(_convert(name, value, option))}")
        given[name] = option
    return first + out, given


def with_places(message: str, places: Mapping[str, str]) -> str:
    """A message of the schema with the places of the settings that it names."""
    words = [word.rstrip(".") for word in re.findall(r"[\w.]+", message)]
    named = [name for name in dict.fromkeys(words) if name in kinds()]
    if len(named) == 1 and named[0] in places:
        place = places[named[0]]
        return message.replace(named[0], place, 1) if place.startswith("--") else f"{place}: {message}"
    found = ", ".join(f"{name}: {places.get(name, 'the default')}" for name in named)
    return f"{message}  ({found})" if len(named) > 1 and not places.keys().isdisjoint(named) else message


def _section(name: str, node: yaml.Node, where: str) -> yaml.MappingNode:
    if isinstance(node, yaml.MappingNode):
        return node
    example = next(known for known in kinds() if known.startswith(f"{name}.")).partition(".")[2]
    if yaml_text.is_null(node):
        raise UserError(f"{where}: the section {name} is empty; indent its settings (`  {example}: …`), or remove it")
    shown = "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value)
    raise UserError(
        f"{where}: {name} must be a section of settings, not {shown}; "
        f"write them below it, indented, such as `  {example}: …`"
    )


def _from_node(name: str, node: yaml.Node, source: str, where: str) -> Any:
    if yaml_text.is_null(node):
        raise UserError(f"{where}: {name} has no value; {_takes(name)}")
    value = yaml_text.plain(node, source)
    nested = isinstance(value, list) and not all(isinstance(item, str) for item in value)
    if isinstance(value, dict) or (nested and not is_rows(kinds()[name])):
        try:
            raise _wrong(name, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    try:
        return _convert(name, value, name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _convert(name: str, value: Any, written: str) -> Any:
    """The value of a setting; `written` is its name in the message."""
    try:
        return convert(value, kinds()[name])
    except WrongValueError as error:
        raise _wrong(name, value, str(error), written) from None


def _wrong(name: str, value: object, advice: str = "", written: str = "") -> UserError:
    comment, kind, default = described_fields(Config)[name]
    shown = format_items(value) if isinstance(value, list) else value
    return wrong_value(written or name, describe(kind, default), shown, advice, comment)


def format_items(items: Sequence[object]) -> str:
    """A list of texts as it is written in YAML."""
    return f"[{', '.join(format_items(item) if isinstance(item, list) else str(item) for item in items)}]"


def _takes(name: str) -> str:
    comment, kind, default = described_fields(Config)[name]
    return f"give {describe(kind, default)}  ({comment})"


def _canonical(value: Any) -> str:
    """The value as jsonargparse reads it from the command line."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_canonical, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return str(value)


def _unknown(name: str, value: yaml.Node, options: Collection[str]) -> str:
    if name in options:
        return f"{name} is not a setting of the run, but an option of the command; give it as --{name}"
    if isinstance(value, yaml.MappingNode) and any(key.value == "source" for key, _ in value.value):
        return f"{name} is a data set to write; give this file as --prep, not as --config"
    if isinstance(value, yaml.MappingNode) and value.value:
        name = f"{name}.{value.value[0][0].value}"
    return unknown_setting(name, kinds())
