"""Colors on a terminal.  Texts are colored at once; `plain` removes the colors where they are not wanted."""

import os
import re
from typing import TextIO

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"
STATES = {
    **dict.fromkeys(("running", "finished"), GREEN),
    **dict.fromkeys(("queued", "requeued", "stopped", "unknown", "not submitted"), YELLOW),
    **dict.fromkeys(("gave up", "failed", "lost", "unreadable"), RED),
}
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def paint(text: str, style: str) -> str:
    """The text in a style of SGR, such as "1" or "38;5;208"."""
    return f"\x1b[{style}m{text}\x1b[0m" if style and text.strip() else text


def paint_state(text: str, state: str) -> str:
    """The text in the color of a state: green is well, yellow waits, red needs attention."""
    return paint(text, STATES.get(state, ""))


def plain(text: str) -> str:
    """The text without colors."""
    return _STYLE.sub("", text)


def wants_color(stream: TextIO) -> bool:
    """Whether to color: on a terminal, unless NO_COLOR is set (https://no-color.org) or it has no colors."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb")
