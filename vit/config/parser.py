"""Reads a run's config from a YAML file and the command line.  Imports no torch, so that commands start quickly.

`--optim.lr 1e-3` overrides a value, `--print-config` prints all of them, `--help` explains each with its comment.
"""

import argparse
import ast
import difflib
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from vit.config.own_files import find_config
from vit.config.paths import escape, expand
from vit.config.schema import PATHS, Config, flatten, to_yaml
from vit.config.user_error import UserError


def load_config(path: Path | str, *overrides: str) -> Config:
    """Reads a YAML file and applies overrides: `load_config("a.yaml", "--optim.lr", "1e-3")`."""
    return parse_config(config_parser(str(path)), ["--config", escape(path), *overrides])[0]


def config_from_text(text: str, source: str) -> Config:
    """Reads a config that is stored in a file of another kind.  Raises UserError that names this `source`."""
    parser = config_parser(source)
    parser.exits = False
    try:
        return parse_config(parser, ["--config", text])[0]
    except UserError as error:
        raise UserError(f"the config in {source} cannot be read: {error}") from None


def config_parser(prog: str, description: str = "", required: bool = True) -> "Parser":
    """Returns a parser for `--config FILE` and every field of `Config`; a command adds its own options to it."""
    out = Parser(prog=prog, description=description, print_config=None, formatter_class=_Help, allow_abbrev=False)
    out.usage = f"{prog} --config FILE [options] [--setting value …]"
    out.add_argument(
        "--config", action=_ConfigFile, required=required, help="YAML file; settings that it omits keep their defaults"
    )
    out.add_argument("--print-config", action="store_true", help="print the resulting config and exit")
    out.add_class_arguments(Config)
    sections = get_type_hints(Config)
    for action in out._actions:
        if action.dest in sections and is_dataclass(sections[action.dest]):
            action.help = argparse.SUPPRESS  # `--model FILE` also works, but is not documented
    for group in out._action_groups:
        for name, section in {"run": Config, **sections}.items():
            if group.title == str(section):
                group.title = f"{name} ({(inspect.getdoc(section) or '').rstrip('.')})"
    return out


class Completion(Protocol):
    """Finds values for settings that are neither in a file nor on the command line; others keep their defaults."""

    lines: list[str]  # what it has found, for the user

    def __call__(self, given: Mapping[str, Any], options: Namespace) -> Mapping[str, Any]:
        """The values, by dotted name; `given` are the settings that were given.  Raises UserError."""
        ...


def parse_config(
    parser: ArgumentParser, args: list[str] | None = None, complete: Completion | None = None
) -> tuple[Config, Namespace]:
    """Returns the config and the command's own options.

    Invalid input ends the process with one line and code 2; with `parser.exits` False it raises UserError.
    """
    try:
        given = vars(parser.parse_args(args, defaults=False).as_flat())
        for name in flatten(Config()):
            section = name.partition(".")[0]
            if given.get(name, "") is None or (section != name and section in given):  # `lr:`, or `optim: 5`
                raise UserError(f"{name} has no value")
        for name in PATHS:
            if name in given:
                given[name] = type(given[name])(_expand(name, str(given[name])))
        options = parser.get_defaults()
        _set(options, given)
        if complete is not None:
            _set(options, complete({name: given[name] for name in flatten(Config()) if name in given}, options))
        config = _pop_config(options)
    except ValueError as error:
        parser.error(str(error))
    if options.pop("print_config", False):
        print("".join(f"# {line}\n" for line in (complete.lines if complete else [])) + to_yaml(config), end="")
        sys.exit(0)
    return config, options


def _set(options: Namespace, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        options[name] = value


def _pop_config(options: Namespace) -> Config:
    """The config, whose settings are removed from the options."""
    hints = get_type_hints(Config)
    values = {f.name: options.pop(f.name) for f in fields(Config)}
    return Config(**{name: hints[name](**vars(v)) if isinstance(v, Namespace) else v for name, v in values.items()})


def _expand(name: str, text: str) -> str:
    try:
        return expand(text)
    except UserError as error:
        raise UserError(f"{name} {error}") from None


class _ConfigFile(ActionConfigFile):
    """`--config FILE`.  The path is expanded like any other; the text of a config, as in checkpoints, is not."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if "\n" not in values:
            path = Path(values := _expand("--config", values))
            if (own := find_config(path)) is not path:
                values = str(own)
        try:
            super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        except OSError as error:
            error.filename = error.filename or values  # errors of reads have no name
            raise


class Parser(ArgumentParser):
    """Reports errors in one line, with a suggestion for a misspelled name; help texts are the fields' comments."""

    option_classes: tuple[type, ...] = (Config,)  # dataclasses whose fields are options
    exits = True  # an error ends the process; False: it is raised as UserError

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Adds the help texts only here: reading the sources takes as long as the rest of parsing."""
        texts = {name: text for cls in self.option_classes for name, text in _help_texts(cls).items()}
        for action in self._actions:
            if action.dest in texts:
                action.help = texts[action.dest]
                action.metavar = action.metavar if "=" in str(action.metavar) else "VALUE"
        return super().format_help(formatter)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(line.strip() for line in message.splitlines())
        message = re.sub(r"<class '(\w+)'>|typing\.Literal\[(.*?)\]", r"\1\2", message)
        message = message.replace("the following arguments are required: config", "--config FILE is required")
        unknown = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        unknown = unknown or re.search(r"(?:[Uu]nrecognized arguments: --|[Oo]ption ')([\w.-]+)", message)
        if unknown:
            name = ".".join(unknown.groups())
            names = [option.removeprefix("--") for action in self._actions for option in action.option_strings]
            leaf = name.rpartition(".")[2]  # `--lr` means `--optim.lr`
            matches = [n for n in names if n.endswith(f".{leaf}")] or difflib.get_close_matches(name, names, cutoff=0.5)
            suggestion = f"; did you mean {matches[0]!r}?" if matches else ""
            message = f"unknown setting {name!r}{suggestion}  (--help lists all settings)"
        if not self.exits:
            raise UserError(message)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(120, shutil.get_terminal_size().columns))


@cache  # parses whole source files; forked ranks inherit the result
def _help_texts(cls: type, prefix: str = "") -> dict[str, str]:
    """Maps each field's dotted name to its help text: trailing comment, choices and default."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines, hints, defaults = source.splitlines(), get_type_hints(cls), cls()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    out: dict[str, str] = {}
    for node in definition.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        name = node.target.id
        if is_dataclass(hints[name]):
            out |= _help_texts(hints[name], f"{prefix}{name}.")
            continue
        assert node.end_lineno and node.end_col_offset
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip(" #")
        default = getattr(defaults, name)
        remarks = ["|".join(get_args(hints[name]))] if get_origin(hints[name]) is Literal else []
        remarks += [f"default: {_format_value(default)}"] if default not in ("", (), {}) else []
        out[prefix + name] = (f"{comment} ({'; '.join(remarks)})" if remarks else comment).replace("%", "%%")
    return out


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.4g}" for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
