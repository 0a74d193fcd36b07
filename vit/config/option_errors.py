"""What argparse and jsonargparse say about options, in one line: the option, what it takes, the value, its help."""

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn, get_args

from vit.config.paths import user_path
from vit.config.values import describe, listed, nearest, unknown_setting, wrong_value


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr, with the option's help; the exit code is 2."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {explain(message, self._actions, 'option')}", file=sys.stderr)
        sys.exit(2)


def explain(message: str, actions: Sequence[argparse.Action], kind: str = "setting") -> str:
    """The message of a library about a command line with these options; unknown names are of this `kind`."""
    message = " ".join(line.strip() for line in message.splitlines())
    if match := re.search(r"nrecognized arguments: (.*)", message):
        return _unrecognized(match[1].split()[0], actions, kind)
    if match := re.fullmatch(r"the following arguments are required: (.*)", message):
        if match[1] == "config":
            return "--config FILE is required"
        missing = match[1].split(", ")
        verb = "is" if len(missing) == 1 else "are"
        return f"{listed(missing, 'and')} {verb} required  (see --help)"
    return _about_option(message, actions)


def _about_option(message: str, actions: Iterable[argparse.Action]) -> str:
    """A message about the value of an option."""
    match = re.fullmatch(r"(?:argument (?P<option>[^:]+)|Parser key \"(?P<dest>\w+)\"): (?P<problem>.*)", message)
    action = match and next((a for a in actions if a.dest == match["dest"] or _written(a) == match["option"]), None)
    if not (match and action):
        return message
    problem, name = match["problem"], _name(action)
    about = _help(action)
    if problem.startswith("expected"):
        return f"{name} has no value; give {_takes(action)}{about and f'  ({about})'}"
    if found := re.search(r"ignored explicit argument '(.*)'", problem):
        return f"{name} takes no value, not {found[1]!r}{about and f'  ({about})'}"
    if found := re.search(r"invalid \w+ value: '(.*)'|Got value: (.*)|invalid choice: '(.*?)'", problem):
        value = next(group for group in found.groups() if group is not None)
        choices = [str(choice) for choice in action.choices or get_args(getattr(action, "_typehint", None))]
        return str(wrong_value(name, _takes(action), value, nearest(value, choices), about))
    return f"{name}: {problem}" if not problem.startswith(name) else problem


def _unrecognized(word: str, actions: Iterable[argparse.Action], kind: str) -> str:
    if not word.startswith("-"):
        advice = _meant(word, [option for action in actions for option in action.option_strings])
        return f"unexpected argument {word!r}{advice and f'; {advice}'}  (see --help)"
    name = word.partition("=")[0]
    if f"-{name}" in {option for action in actions for option in action.option_strings}:
        return f"unknown option {name}; write two hyphens: -{name}"
    subparsers = [
        parser for action in actions if isinstance(action.choices, dict) for parser in action.choices.values()
    ]
    actions = [*actions, *(action for parser in subparsers for action in parser._actions)]  # one is in use
    options = [option for action in actions for option in action.option_strings if option.startswith("--")]
    if kind == "setting":
        return unknown_setting(name.removeprefix("--"), [option.removeprefix("--") for option in options])
    near = nearest(name, options)
    return f"unknown {kind} {name}{near and f'; {near}'}  (--help lists all options)"


def _meant(word: str, options: Collection[str]) -> str:
    """What a word that is no option was probably meant to be."""
    if word.endswith((".yaml", ".yml")) and "--config" in options:
        return f"did you mean --config {word}?"
    bare = word.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2015\u2212")  # as word processors write hyphens
    if f"--{bare.partition('=')[0]}" in options:
        return f"write two hyphens: --{bare}"
    return ""


def _takes(action: argparse.Action) -> str:
    """What an option takes, in words."""
    if action.choices:
        return listed(map(str, action.choices))
    kind = getattr(action, "_typehint", None) or action.type
    several = action.nargs in ("+", "*")
    if kind is user_path:
        return "one or more paths" if several else "a path"
    if kind in (None, str):
        metavar = action.metavar if isinstance(action.metavar, str) else "value"
        return f"one or more of {metavar}" if several else f"a value: {metavar}"
    return describe(kind)


def _written(action: argparse.Action) -> str:
    """The option as argparse names it in messages."""
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


def _help(action: argparse.Action) -> str:
    text = action.help if action.help and action.help != argparse.SUPPRESS else ""
    return text.replace("%%", "%")
