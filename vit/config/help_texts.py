"""The help texts of settings: the trailing comments of the dataclasses' fields, with choices and defaults."""

import ast
import inspect
import textwrap
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vit.config.values import format_list


def help_texts(cls: type) -> dict[str, str]:
    """Maps each field's dotted name to its help text: trailing comment, choices and default."""
    out = {}
    for name, (comment, kind, default) in described_fields(cls).items():
        remarks = ["|".join(get_args(kind))] if get_origin(kind) is Literal else []
        remarks += [f"default: {_format_value(default)}"] if default not in ("", (), {}) else []
        out[name] = (f"{comment} ({'; '.join(remarks)})" if remarks else comment).replace("%", "%%")
    return out


@cache  # parses whole source files; forked ranks inherit the result
def described_fields(cls: type, prefix: str = "") -> dict[str, tuple[str, Any, Any]]:
    """Maps each field's dotted name to its comment, its type and its default."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines, hints, defaults = source.splitlines(), get_type_hints(cls), cls()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    out: dict[str, tuple[str, Any, Any]] = {}
    for node in definition.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        name = node.target.id
        if is_dataclass(hints[name]):
            out |= described_fields(hints[name], f"{prefix}{name}.")
            continue
        assert node.end_lineno and node.end_col_offset
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip(" #")
        out[prefix + name] = comment, hints[name], getattr(defaults, name)
    return out


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return format_list(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
