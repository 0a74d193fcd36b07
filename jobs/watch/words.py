"""Numbers, times and texts as `status.py` shows them."""

import re
import time
import unicodedata

from vit.run.progress import format_duration

NONE = "-"  # a value that is not known
# For terminals and files whose encoding has no other characters.
PLAIN = str.maketrans("░▒▓█▚◆×…±·→─" + "▁▂▃▄▅▆▇", "-=*#%o!~~.>-" + ".:-=+*#")


def duration(seconds: float | None) -> str:
    """`42 s`, `3:05`."""
    return NONE if seconds is None else format_duration(seconds)


def percent(share: float | None, digits: int = 0) -> str:
    """`16.00%`."""
    return NONE if share is None else f"{share:.{digits}%}"


def clock(when: float | None, seconds: bool = False) -> str:
    """`Sat 14:20` within a week, else `Dec 24 14:20`, else `2027-03-01 14:20`.

    With `seconds`, a time of the last hours is `14:20:59`.
    """
    if when is None:
        return NONE
    try:
        then, days = time.localtime(when), abs(when - time.time()) / 86400
    except (OverflowError, ValueError, OSError):
        return NONE
    if seconds and days < 0.5:
        return time.strftime("%H:%M:%S", then)
    return time.strftime("%a %H:%M" if days < 6 else "%b %d %H:%M" if days < 180 else "%Y-%m-%d %H:%M", then)


def gigabytes(count: int | None) -> str:
    """`31 GB`; GB of 2^30 bytes, as the vendors of GPUs count."""
    return NONE if count is None else f"{count / 2**30:.0f} GB" if count >= 10 * 2**30 else f"{count / 2**30:.1f} GB"


def printable(text: str) -> str:
    """A text in one line, without control characters: logs may contain colors, and anything after a crash."""
    if text.isprintable():  # almost all are, and this is quick
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "" for c in _without_escapes(text))


def _without_escapes(text: str) -> str:
    """Removes the sequences that set colors or move the cursor."""
    return re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)", "", text)


def width(text: str) -> int:
    """How many columns of a terminal a text takes: letters of East Asian scripts take two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def shorten(text: str, columns: int, middle: bool = False) -> str:
    """The text with `…` at its end, or in its middle, if it is wider than this."""
    if width(text) <= columns:
        return text
    tail = (columns - 1) // 2 if middle else 0
    end = ""
    for c in reversed(text):
        if width(c + end) > tail:
            break
        end = c + end
    start = ""
    for c in text:
        if width(start + c) > columns - 1 - width(end):
            break
        start += c
    return f"{start}…{end}"


def pad(text: str, columns: int, left: bool = True) -> str:
    """The text and spaces, at its left or right side."""
    spaces = " " * max(0, columns - width(text))
    return text + spaces if left else spaces + text
