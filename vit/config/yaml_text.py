"""YAML files that users write: read as text with line numbers; what is wrong with a file is said in one line.

Values stay text: YAML would read `off` as false, `1:30` as 90 and 24:00:00 as 86,400.
"""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from vit.config import own_files
from vit.config.paths import printable
from vit.config.user_error import UserError

NULL = ("", "~", "null", "Null", "NULL")
_STANDARD_TAG = "tag:yaml.org,2002:"
_STANDARD_TAGS = ("str", "map", "seq", "int", "float", "bool", "null")


def read_text(path: str, option: str) -> str:
    """The text of a file that a user gave as `option`.  Raises UserError that names it."""
    if not path:
        raise UserError(f"{option} has no value; give a YAML file")
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{option} {printable(path)}: no such file{_similar_file(path)}") from None
    except IsADirectoryError:
        inside = os.path.join(path, "config.yaml")
        hint = f"; did you mean {printable(inside)}?" if os.path.exists(inside) else "; give a YAML file"
        raise UserError(f"{option} {printable(path)} is a folder{hint}") from None
    except OSError as error:
        raise UserError(f"{option} {printable(path)} cannot be read: {error.strerror or error}") from None
    except ValueError:  # a null byte
        raise UserError(f"{option} {printable(path)}: not the name of a file") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte {content[error.start]:#04x} in line {line}"
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            found = "it seems to be UTF-16"
        raise UserError(f"{printable(path)}: not a text file in UTF-8 ({found}); save it as UTF-8") from None


def compose(text: str, source: str) -> yaml.Node | None:
    """The YAML's nodes, whose marks have line numbers; None without content.  Raises UserError that names `source`."""
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{source}{_explained(error, text)}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        character = f"{ord(text[error.position]):#04x}"
        raise UserError(f"{source}, line {line}: the character {character} is not allowed; delete it") from None
    except RecursionError:
        raise UserError(f"{source}: too many brackets inside each other") from None


def place(node: yaml.Node, source: str) -> str:
    """`a.yaml, line 3`."""
    return f"{source}, line {node.start_mark.line + 1}"


def plain(node: yaml.Node, source: str) -> object:
    """The node as nested dicts, lists and text.  Raises UserError for keys that are there twice."""
    if isinstance(node, yaml.MappingNode):
        return {key: plain(value, source) for key, _, value in entries(node, source)}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item, source) for item in node.value]
    check_tag(node, source)
    return str(node.value)


def entries(node: yaml.MappingNode, source: str, prefix: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Keys with their nodes and those of their values.  Raises UserError for keys that are there twice, or no text."""
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{place(key, source)}: expected `name: value`, but the name is not text")
        name, line = prefix + key.value, key.start_mark.line + 1
        if name in lines:
            kind = "merge both" if isinstance(value, yaml.MappingNode) else "remove one"
            raise UserError(f"{place(key, source)}: {name} is already in line {lines[name]}; {kind}")
        lines[name] = line
        yield str(key.value), key, value


def is_null(node: yaml.Node) -> bool:
    """Whether there is nothing after the colon, or `null`."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NULL


def check_tag(node: yaml.Node, source: str) -> None:
    """Raises UserError for `!name` before a value, which could ask for any Python object."""
    tag = str(node.tag)
    if tag not in {_STANDARD_TAG + name for name in _STANDARD_TAGS}:
        shown = tag.replace(_STANDARD_TAG, "!!")
        raise UserError(f"{place(node, source)}: the tag {shown} is not allowed; remove it")


def not_a_mapping(node: yaml.Node | None, source: str, example: str) -> UserError:
    """The error for a file that is empty, a list or a text."""
    if node is None or is_null(node):
        return UserError(f"{source} is empty; write lines such as `{example}`")
    if isinstance(node, yaml.SequenceNode):
        return UserError(f"{place(node, source)}: expected lines such as `{example}`, not a list")
    text = str(node.value)
    first = text.partition("\n")[0][:60]
    for sign, problem in (("=", "write a colon instead of ="), (":", "put a space after the colon")):
        if sign in first:
            return UserError(f"{place(node, source)}: expected lines such as `{example}`, not {first!r}; {problem}")
    return UserError(f"{place(node, source)}: expected lines such as `{example}`, not {first!r}")


def _similar_file(path: str) -> str:
    """` (did you mean configs/demo.yaml?)`: a file of a similar name in its folder, or in configs/."""
    folder, name = os.path.split(path)
    for where in (folder, os.path.relpath(own_files.CONFIGS)):
        try:
            files = [file for file in os.listdir(where or ".") if file.endswith((".yaml", ".yml"))]
        except OSError:
            continue
        stems = {file.rpartition(".")[0]: file for file in files}
        stem = name.rpartition(".")[0] or name
        if match := difflib.get_close_matches(stem, stems, 1, cutoff=0.7):
            return f"; did you mean {printable(os.path.join(where, stems[match[0]]))}?"
    return "" if os.path.isdir(folder or ".") else f": there is no folder {printable(folder)}"


def _explained(error: yaml.MarkedYAMLError, text: str) -> str:
    """Where the error is, and what it means, in words for those who do not know YAML's grammar."""
    mark, problem, context = error.problem_mark, str(error.problem), str(error.context)
    begin = error.context_mark.line + 1 if error.context_mark else 0
    if mark is None:
        return f": {problem}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    where = f", line {mark.line + 1}, column {mark.column + 1}: "
    if "\t" in line[: mark.column + 1] and "cannot start any token" in problem:
        return f"{where}a tab; use spaces for indentation"
    if "end of stream" in problem and "quoted scalar" in context:
        return f", line {begin}: a quote that is not closed"
    if "flow" in context:
        return f", line {begin}: a bracket that is not closed, or a comma that is missing"
    for words, meaning in _MEANINGS.items():
        if words in problem:
            return where + meaning
    return where + problem


_MEANINGS = {
    "mapping values are not allowed": "a colon where none is expected: indent the line as its neighbors, "
    "write one `name: value` in each line, and put text with a colon in quotes",
    "could not find expected ':'": "a line without a colon; write `name: value`",
    "expected <block end>": "the line is not indented as those before it",
    "expected '<document start>'": "the line is not indented as those before it, or stands below `...`",
    "found another document": "`---` begins a second document; remove it",
    "but found another document": "`---` begins a second document; remove it",
    "expected a single document": "`---` begins a second document; remove it",
    "undefined alias": "a value that begins with * refers to an anchor that does not exist; put the value in quotes",
    "cannot start any token": "the value begins with a character that needs quotes around the value",
}
