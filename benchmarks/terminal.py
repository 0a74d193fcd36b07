"""Pictures of what commands show on a terminal: runs them in a real pseudo-terminal and draws its screen as SVG."""

import fcntl
import html
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import pyte

LINE, CHARACTER, MARGIN = 18, 7.83, 14  # pixels
BACKGROUND, FOREGROUND = "#0d1117", "#e6edf3"
COLORS = {
    "black": "#484f58", "red": "#ff7b72", "green": "#7ee787", "brown": "#e3b341", "yellow": "#e3b341",
    "blue": "#79c0ff", "magenta": "#d2a8ff", "cyan": "#76e3ea", "white": "#e6edf3", "brightblack": "#6e7681",
    "brightred": "#ffa198", "brightgreen": "#56d364", "brightyellow": "#e3b341", "brightblue": "#a5d6ff",
    "brightmagenta": "#e2c5ff", "brightcyan": "#b3f0ff", "brightwhite": "#ffffff",
}  # fmt: skip


def screen(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    columns: int,
    rows: int,
    seconds: float | None = None,
) -> pyte.Screen:
    """What a terminal of this size shows when the command has ended, or after `seconds`; then it gets a Ctrl-C."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    here = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)}
    process = subprocess.Popen(
        command, cwd=folder, env=dict(environment) | here, stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    shown = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(shown)
    deadline = time.monotonic() + (600.0 if seconds is None else seconds)
    with suppress(OSError):  # the process has closed the terminal
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                stream.feed(os.read(master, 65536))
    for number in (signal.SIGINT, signal.SIGKILL):  # a process that was started in the background may ignore SIGINT
        if process.poll() is None:
            os.killpg(process.pid, number)
        deadline = time.monotonic() + 5
        with suppress(OSError):  # what it prints at its end is not part of the picture
            while process.poll() is None and time.monotonic() < deadline:
                if select.select([master], [], [], 0.1)[0]:
                    os.read(master, 65536)
    os.close(master)
    process.wait()
    return shown


def draw(shown: pyte.Screen, command: str, out: Path) -> None:
    """Writes the lines of a screen below the command that was typed; of empty lines, at most one in a row."""
    used = [bool(line.strip()) for line in shown.display]
    rows = [_line(shown, i) for i in range(len(used)) if used[i] or any(used[i - 1 : i])]
    typed = f'<tspan fill="{COLORS["green"]}">$ {html.escape(command)}</tspan>'
    width, height = shown.columns * CHARACTER + 2 * MARGIN, (len(rows) + 2) * LINE + 2 * MARGIN
    lines = [
        f'<text x="{MARGIN}" y="{MARGIN + (i + 0.75) * LINE:.0f}" fill="{FOREGROUND}" xml:space="preserve">{row}</text>'
        for i, row in enumerate([typed, "", *rows])
    ]
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, '
        'DejaVu Sans Mono, monospace" font-size="13">\n'
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>\n' + "\n".join(lines) + "\n</svg>\n"
    )


def _line(shown: pyte.Screen, row: int) -> str:
    """A line of the screen, in parts of one style each, at fixed positions: some fonts have wider blocks."""
    cells = [shown.buffer[row][column] for column in range(shown.columns)]
    out, column = [], 0
    for (color, bold, reverse, background), part in groupby(cells, key=lambda c: (c.fg, c.bold, c.reverse, c.bg)):
        text = "".join(cell.data for cell in part)
        if text.strip():
            fill = COLORS.get(background if reverse else color, f"#{color}" if len(color) == 6 else FOREGROUND)
            weight = ' font-weight="bold"' if bold else ""
            x = MARGIN + column * CHARACTER
            length = len(text) * CHARACTER
            style = f'x="{x:.1f}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" fill="{fill}"{weight}'
            out.append(f"<tspan {style}>{html.escape(text)}</tspan>")
        column += len(text)
    return "".join(out)
