"""Reads a run's config from a YAML file and the command line.  Imports no torch, so that commands start quickly.

`--optim.lr 1e-3` overrides a value, `--print-config` prints all of them, `--help` explains each with its comment.
"""

import argparse
import inspect
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from vit.config import settings
from vit.config.help_texts import help_texts
from vit.config.option_errors import explain
from vit.config.own_files import find_config
from vit.config.paths import escape, expand, printable
from vit.config.schema import PATHS, Config, to_yaml
from vit.config.user_error import UserError
from vit.config.yaml_text import read_text


def load_config(path: Path | str, *overrides: str) -> Config:
    """Reads a YAML file and applies overrides: `load_config("a.yaml", "--optim.lr", "1e-3")`."""
    return parse_config(config_parser(str(path)), ["--config", escape(path), *overrides])[0]


def config_from_text(text: str, source: str) -> Config:
    """Reads a config that is stored in a file of another kind.  Raises UserError that names this `source`."""
    parser = config_parser(source)
    parser.exits = False
    try:
        return parse_config(parser, ["--config", f"{text}\n"])[0]  # with a line's end it is no path
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
            action.help = argparse.SUPPRESS  # a section is not an option
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
    parser: "Parser", args: Sequence[str] | None = None, complete: Completion | None = None
) -> tuple[Config, Namespace]:
    """Returns the config and the command's own options.

    Invalid input ends the process with one line and code 2; with `parser.exits` False it raises UserError.
    """
    try:
        arguments, parser.places = settings.check_arguments(sys.argv[1:] if args is None else args)
        given = dict(parser.places)
        options = parser.parse_args(arguments)
        parser.places |= given  # they override the file
        for name in PATHS:
            options[name] = type(options[name])(_expand(name, str(options[name])))
        if complete is not None:
            for name, value in complete({name: options[name] for name in parser.places}, options).items():
                options[name], parser.places[name] = value, "init_from"
    except UserError as error:
        parser.fail(str(error))
    try:
        config = _pop_config(options)
    except UserError as error:
        parser.fail(settings.with_places(str(error), parser.places))
    if options.pop("print_config", False):
        print("".join(f"# {line}\n" for line in (complete.lines if complete else [])) + to_yaml(config), end="")
        sys.exit(0)
    return config, options


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
    """`--config FILE`, or the text of a config, as in checkpoints.  A path is expanded like any other."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            path = values if "\n" in values else str(find_config(Path(_expand("--config", values))))
            text = values if "\n" in values else read_text(path, "--config")
            options = {name for action in parser._actions for name in action.option_strings}
            found, places = settings.read_file(
                text, "its text" if text is values else printable(path), {name.removeprefix("--") for name in options}
            )
        except UserError as error:
            parser.fail(str(error))
        for name, value in found.items():
            cfg[name] = value
        parser.places |= places
        cfg[self.dest] = [*(cfg.get(self.dest) or []), path]


class Parser(ArgumentParser):
    """Reports errors in one line, with a suggestion for a misspelled name; help texts are the fields' comments."""

    option_classes: tuple[type, ...] = (Config,)  # dataclasses whose fields are options
    exits = True  # an error ends the process; False: it is raised as UserError
    places: dict[str, str] = {}  # noqa: RUF012  # where each setting stands: a line of a file, or an option

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Adds the help texts only here: reading the sources takes as long as the rest of parsing."""
        texts = {name: text for cls in self.option_classes for name, text in help_texts(cls).items()}
        for action in self._actions:
            if action.dest in texts:
                action.help = texts[action.dest]
                action.metavar = action.metavar if "=" in str(action.metavar) else "VALUE"
        # jsonargparse before 4.53 and Python before 3.15 have no such argument
        return super().format_help() if formatter is None else super().format_help(formatter)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.fail(explain(message, self._actions))

    def fail(self, message: str) -> NoReturn:
        """Ends the process with this message, or raises it."""
        if not self.exits:
            raise UserError(message)
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(120, shutil.get_terminal_size().columns))
