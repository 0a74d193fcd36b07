"""The table of runs: as many columns as the terminal has room for, the most important ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.watch.colors import BOLD, paint, paint_state
from jobs.watch.run_status import Status
from jobs.watch.words import NONE, clock, duration, gigabytes, pad, percent, printable, shorten, width
from vit.run.counts import counted

STATE_WIDTH, NAME_WIDTH = 24, 24  # longer ones are truncated if there is too little room
MIN_STATE_WIDTH, MIN_NAME_WIDTH = 12, 12  # the same, in the place of one of the most important columns
MOST_IMPORTANT = 3  # the rank of the last of them


@dataclass(frozen=True)
class Column:
    """A column of the table, and how it shows a run."""

    name: str
    rank: int  # columns with a higher one are dropped first; 0: never
    cell: Callable[[Status], str]
    trivial: tuple[str, ...] = (NONE,)  # the column is hidden if it has nothing else
    left: bool = False  # aligned to the left: text


def state(row: Status) -> str:
    """`running (n1)`."""
    return f"{row.state} ({row.detail})" if row.detail else row.state


def _of(value: float | None, whole: float | None, digits: int = 0) -> str:
    return NONE if value is None or not whole else f"{value:,.{digits}f}/{whole:,g}"


def _step(row: Status) -> str:
    return NONE if row.step is None or not row.steps else f"{row.step:,}/{row.steps:,}"


def _progress(row: Status) -> str:
    return NONE if row.step is None or not row.steps else f"{100 * row.step / row.steps:.1f}"


def _running(cell: Callable[[Status], str]) -> Callable[[Status], str]:
    """A cell that only means something while the run trains."""
    return lambda row: cell(row) if row.alive else NONE


def _memory(row: Status) -> str:
    if row.gpu_memory is None or not row.gpu_memory_total:
        return NONE
    return f"{gigabytes(row.gpu_memory).removesuffix(' GB')}/{gigabytes(row.gpu_memory_total)}"


COLUMNS = (
    Column("run", 0, lambda row: row.run, left=True),
    Column("state", 0, state, left=True),
    Column("epoch", 6, lambda row: _of(row.epoch, row.epochs, 1)),
    Column("step", 8, _step),
    Column("%", 1, _progress),
    Column("loss", 4, lambda row: NONE if row.loss is None else f"{row.loss:.4f}"),
    Column("top-1", 2, lambda row: percent(row.top1, 2)),
    Column("images/s", 7, _running(lambda r: NONE if r.images_per_second is None else f"{r.images_per_second:,.0f}")),
    Column("MFU", 11, _running(lambda row: percent(row.mfu))),
    Column("GPU", 12, _running(lambda row: percent(row.gpu))),
    Column("memory", 16, _memory),
    Column("data wait", 13, lambda row: percent(row.data_wait), trivial=(NONE, "0%")),
    Column("goodput", 9, lambda row: percent(row.goodput)),
    Column("attempt", 10, lambda row: str(row.attempt) if row.attempt else NONE, trivial=(NONE, "1")),
    Column("restarts", 17, lambda row: str(row.restarts) if row.restarts else NONE),
    Column("requeues", 18, lambda row: str(row.requeues) if row.requeues else NONE),
    Column("checkpoint", 15, _running(lambda row: duration(row.checkpoint_age))),
    Column("time left", 3, _running(lambda row: duration(row.seconds_left))),
    Column("end", 5, _running(lambda row: clock(row.ends))),
    Column("last update", 14, lambda row: duration(row.seconds_since_sign)),
)


def format_table(rows: Sequence[Status], columns: int) -> list[str]:
    """The lines of a table of at most this many columns of a terminal, if possible.

    Values that no run has are left out.  If there is too little room, long states and names are truncated, and the
    least important columns are left out.
    """
    cells = {column.name: [printable(column.cell(row)) for row in rows] for column in COLUMNS}
    shown = [column for column in COLUMNS if column.rank == 0 or set(cells[column.name]) - {*column.trivial}]
    widths = {column.name: max(map(width, [column.name, *cells[column.name]])) for column in shown}

    def total() -> int:
        return sum(widths[column.name] for column in shown) + 2 * (len(shown) - 1)

    def drop(keep: int) -> None:
        while total() > columns and (least := max(shown, key=lambda column: column.rank)).rank > keep:
            shown.remove(least)

    def truncate(name: str, minimum: int) -> None:
        widths[name] = max(min(minimum, widths[name]), widths[name] - max(0, total() - columns))

    truncate("state", STATE_WIDTH)
    truncate("run", NAME_WIDTH)
    drop(keep=MOST_IMPORTANT)
    truncate("state", MIN_STATE_WIDTH)
    truncate("run", MIN_NAME_WIDTH)
    drop(keep=0)
    for name in ("state", "run"):
        cells[name] = [shorten(text, widths[name], middle=name == "run") for text in cells[name]]
    lines = ["  ".join(pad(column.name, widths[column.name], column.left) for column in shown).rstrip()]
    for i, row in enumerate(rows):
        line = []
        for column in shown:
            text = pad(cells[column.name][i], widths[column.name], column.left)
            line.append(paint_state(text, row.state) if column.name == "state" else text)
        lines.append("  ".join(line).rstrip())
    return lines


def count_states(rows: Sequence[Status]) -> str:
    """`2 finished, 4 running`."""
    states = [row.state for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def format_tables(tables: dict[str, list[Status]], columns: int) -> list[str]:
    """All tables, each with its title, followed by the reasons why runs failed."""
    out: list[str] = []
    for name, rows in tables.items():
        out += [""] if out else []
        if name:
            out.append(f"{paint(printable(name), BOLD)} ({counted(len(rows), 'run')}): {count_states(rows)}")
        out += format_table(rows, columns)
        out += [f"{row.run}: {printable(row.why)}" for row in rows if row.why]
        out += [f"{row.run}: {printable(line)}" for row in rows for line in (*row.slow_ranks, *row.problems)]
    return out
