"""One rule for every path that a user types: `~` and variables are expanded.

A shell expands them only where a word begins, so not in `--out=~/x`, in quotes, or in a YAML file.
"""

import argparse
import os
import re
import shlex
from pathlib import Path

from vit.config.user_error import UserError

_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def expand(text: str) -> str:
    """Replaces `~`, `~USER`, `$NAME` and `${NAME}` as a shell does; `$$` stands for one dollar sign.

    Raises UserError that names a variable that is not set or a user that does not exist, unless there is a file of
    exactly that name: a shell's `*` inserts names that may contain a dollar sign.
    """
    try:
        return _expand(text)
    except UserError:
        if os.path.lexists(text):
            return text
        raise


def _expand(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        dollar, name = match[1], match[2] or match[3]
        if not dollar and name not in os.environ:
            raise UserError(f"{text}: the variable {name} is not set; set it, or write $$ for a dollar sign")
        return dollar or os.environ[name]

    user, slash, rest = text.partition("/")
    if user.startswith("~"):
        home = os.path.expanduser(user)
        if home == user:
            raise UserError(f"{text}: there is no user {user[1:]!r}; write ./{user} for a file of that name")
        user = home
    else:
        user = _VARIABLE.sub(value, user)
    return user + slash + _VARIABLE.sub(value, rest)


def escape(path: str | Path) -> str:
    """The text that `expand` turns into exactly this path."""
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def printable(path: str | Path) -> str:
    """A path in one line of text: what cannot be printed, and bytes that are not UTF-8, as `\\xNN`."""
    return "".join(
        c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))
        for c in str(path)
    )


def shell_word(path: str | Path) -> str:
    """The text that a user can type in a shell so that a command of this project gets exactly this path."""
    text = escape(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def user_path(text: str | Path) -> Path:
    """The `type` of every command-line option and argument that is a path; a Path is returned as it is."""
    try:
        return text if isinstance(text, Path) else Path(expand(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
