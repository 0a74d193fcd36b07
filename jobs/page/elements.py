"""HTML and SVG elements.  Text is escaped wherever it is inserted; only an `Html` is inserted as it is."""

import html
import json
from typing import Any, NewType

Html = NewType("Html", bytes)  # bytes, so that text cannot be taken for it
NOTHING = Html(b"")
VOID = {"meta", "img", "input", "br", "path", "line", "rect"}  # elements without content

Child = str | Html | int | None


def element(name: str, *children: Child, **attributes: str | float | bool | None) -> Html:
    """`<name attributes>children</name>`.  In names of attributes `_` stands for `-`; `class_` is `class`.

    An attribute of value None or False is left out, one of value True has no value.
    """
    opened = f"<{name}"
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        opened += f" {key.rstrip('_').replace('_', '-')}"
        opened += "" if value is True else f'="{escaped(value)}"'
    if name in VOID:
        return Html(f"{opened}>".encode() if not children else b"")
    return Html(f"{opened}>".encode() + joined(*children) + f"</{name}>".encode())


def joined(*children: Child) -> Html:
    """Several pieces of text and elements, one after the other."""
    return Html(b"".join(c if isinstance(c, bytes) else escaped(c).encode() for c in children if c is not None))


def escaped(value: object) -> str:
    """Text as it stands in HTML.  What cannot be encoded, as in names of files that are not UTF-8, becomes `?`."""
    return html.escape(str(value).encode(errors="replace").decode())


def data(values: Any, id_: str) -> Html:
    """Values for the page's script, as JSON that cannot end its element."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{escaped(id_)}">{text}</script>'.encode())
