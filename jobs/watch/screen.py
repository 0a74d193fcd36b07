"""What `status.py` prints, and how it refreshes it on a terminal."""

import shutil
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from jobs.watch.colors import DIM, paint, plain, wants_color
from jobs.watch.overview import Overview
from jobs.watch.ranking import format_ranking, is_sweep, rank
from jobs.watch.run_page import run_page
from jobs.watch.table import format_tables
from jobs.watch.words import PLAIN
from vit.run.console import started_as

MIN_COLUMNS = 40  # of a terminal; a smaller one wraps lines
LOOK_SECONDS = 0.1  # between looks at the size of the terminal


def lines_of(overview: Overview, ranked: bool, columns: int, rows: int | None = None) -> list[str]:
    """The lines to show: a page for a run alone, else tables and the ranking of sweeps (of all runs, if `ranked`).

    A page has at most so many rows, if possible.
    """
    columns = max(MIN_COLUMNS, columns)
    if overview.alone is not None:
        ((row,),) = overview.tables.values()
        return run_page(row, overview.alone, columns, rows)
    lines = format_tables(overview.tables, columns)
    for table in overview.tables.values():
        if ranked or is_sweep(table):
            try:
                ranking = format_ranking(rank(table), columns)
            except OSError as error:
                ranking = [f"no ranking: {error}"]
            lines += ["", *ranking] if ranking else []
    return lines or [overview.empty]


def render(overview: Overview, ranked: bool, default_columns: int) -> str:
    """The text for standard output, with colors if that is a terminal."""
    text = "\n".join(lines_of(overview, ranked, shutil.get_terminal_size((default_columns, 24)).columns))
    if not wants_color(sys.stdout):
        text = plain(text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(PLAIN)
    return text


def watch(look: Callable[[], Overview], every: float, ranked: bool) -> int:
    """Shows the newest state on the whole terminal, until Ctrl-C or TERM; then the terminal is as before."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, color_system="auto")
    encoding = sys.stdout.encoding or "utf-8"

    def screen(overview: Overview, seen: float) -> Text:
        columns, rows = console.size
        warnings = [f"{started_as('status.py')}: {line}" for line in overview.warnings]
        warnings = ["", *warnings] if warnings else []
        lines = [*lines_of(overview, ranked, columns, rows - 2 - len(warnings)), *warnings]
        clock = time.strftime("%H:%M:%S", time.localtime(seen))
        bottom = paint(f"{clock}, every {every:g} s; Ctrl-C ends"[: columns - 1], DIM)
        if len(lines) > rows - 2:
            hidden = len(lines) - (rows - 3)
            lines = [*lines[: max(0, rows - 3)], f"… {hidden} more lines: this needs a higher terminal"[: columns - 1]]
        shown = "\n".join([*lines, *[""] * (rows - 1 - len(lines)), bottom])
        return Text.from_ansi(shown if "utf" in encoding.lower() else shown.translate(PLAIN), no_wrap=True)

    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        overview, seen = look(), time.time()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                size = console.size
                live.update(screen(overview, seen), refresh=True)
                due = seen + every
                while console.size == size and (left := due - time.time()) > 0:
                    time.sleep(min(LOOK_SECONDS, left))
                if time.time() >= due:
                    overview, seen = look(), time.time()
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
