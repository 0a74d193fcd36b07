"""A run's config from a YAML file and the command line.  No torch: a login node must answer at once.

`--optim.lr 1e-3` overrides a value, `--print-config` shows them all, `--help` explains each by its comment.
"""

import argparse
import ast
import difflib
import inspect
import re
import shutil
import sys
import textwrap
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from vit.config.schema import Config, flatten


def load_config(path: Path | str, *overrides: str) -> Config:
    """The config of a YAML file, with overrides: `load_config("a.yaml", "--optim.lr", "1e-3")`."""
    return parse_config(config_parser(str(path)), ["--config", str(path), *overrides])[0]


def config_parser(prog: str, description: str = "", required: bool = True) -> "Parser":
    """A parser of `--config FILE` and every field of `Config`; a command adds its own options to it."""
    out = Parser(
        prog=prog, description=description, print_config="--print-config", formatter_class=_Help, allow_abbrev=False
    )
    out.usage = f"{prog} --config FILE [options] [--setting value …]"
    out.add_argument(
        "--config", action="config", required=required, help="YAML file; what it leaves out keeps its default"
    )
    out.add_class_arguments(Config)
    rooms = get_type_hints(Config)
    for action in out._actions:
        if action.dest in rooms and is_dataclass(rooms[action.dest]):
            action.help = argparse.SUPPRESS  # `--model FILE` works, but one way to say it is enough
        elif action.dest == "print_config":
            action.help, action.metavar = "print the config that all this amounts to, and exit", ""
    for group in out._action_groups:
        for name, room in {"run": Config, **rooms}.items():
            if group.title == str(room):
                group.title = f"{name} ({(inspect.getdoc(room) or '').rstrip('.')})"
    return out


def parse_config(parser: ArgumentParser, args: list[str] | None = None) -> tuple[Config, Namespace]:
    """The config, and the command's own options.  Ends the process with one clear line if the input is wrong."""
    hints = get_type_hints(Config)
    try:
        options = parser.parse_args(args)
        given = vars(options.as_flat())
        for name in flatten(Config()):
            if given.get(name) is None:  # `lr:` with nothing after it, or `optim: 5`
                raise ValueError(f"{name} has no value")
        values = {f.name: options.pop(f.name) for f in fields(Config)}
        rooms = {name: hints[name](**vars(v)) if isinstance(v, Namespace) else v for name, v in values.items()}
        config = Config(**rooms)
    except ValueError as error:
        parser.error(str(error))
    return config, options


class Parser(ArgumentParser):
    """Errors in one line, with the nearest known name for a misspelt one; help from the comments of dataclasses."""

    explained: tuple[type, ...] = (Config,)  # whose fields the options are

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Reads the sources only now: that takes as long as all the rest of parsing."""
        texts = {name: text for cls in self.explained for name, text in _help_texts(cls).items()}
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
            wrong, names = ".".join(unknown.groups()), [action.dest for action in self._actions]
            leaf = wrong.rpartition(".")[2]  # `--lr` means `--optim.lr`
            near = [n for n in names if n.endswith(f".{leaf}")] or difflib.get_close_matches(wrong, names, cutoff=0.5)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            message = f"unknown setting {wrong!r}{meant}  (--help lists all)"
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(120, shutil.get_terminal_size().columns))


@cache  # it parses whole files, and forks that train inherit what came of it
def _help_texts(cls: type, prefix: str = "") -> dict[str, str]:
    """Each field's trailing comment, choices and default, under its full name."""
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
        remarks += [f"default: {_shown(default)}"] if default not in ("", (), {}) else []
        out[prefix + name] = (f"{comment} ({'; '.join(remarks)})" if remarks else comment).replace("%", "%%")
    return out


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.4g}" for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
