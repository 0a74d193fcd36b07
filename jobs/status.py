"""Shows the state of runs: how far each is, what it waits for, and why it ended.

python jobs/status.py runs/*
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: sys.path[0] is jobs/, except with PYTHONSAFEPATH
    sys.path[: not sys.flags.safe_path] = [str(ROOT)]
if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

from jobs.login import slurm_queries
from jobs.login.run_status import Status, is_run, newest_job, status
from jobs.login.slurm_queries import QueuedJob, SlurmNotFoundError, SlurmUnreachableError
from vit.config.paths import user_path
from vit.run.command import run_command
from vit.run.counts import counted
from vit.run.folder import RunFolder
from vit.run.progress import format_duration

# fmt: off
COLUMNS = (
    "run", "state", "step", "%", "loss", "top-1", "images/s", "time left", "restarts", "requeues", "last update",
)
# fmt: on
LEFT_ALIGNED = {"run", "state"}  # the others hold numbers
MIN_STATE_WIDTH = 12


def cells(row: Status) -> tuple[str, ...]:
    """A row of the table, one cell for each of COLUMNS."""
    percent = f"{100 * row.step / row.steps:.1f}" if row.step is not None and row.steps else "-"
    step = f"{row.step:,}/{row.steps:,}" if row.step is not None and row.steps else "-"
    running = row.state == "running"
    return (
        row.run,
        f"{row.state} ({row.detail})" if row.detail else row.state,
        step,
        percent,
        "-" if row.loss is None else f"{row.loss:.4f}",
        "-" if row.top1 is None else f"{row.top1:.2%}",
        "-" if row.images_per_second is None or not running else f"{row.images_per_second:,.0f}",
        "-" if row.seconds_left is None or not running else format_duration(row.seconds_left),
        str(row.restarts) if row.restarts else "-",
        str(row.requeues) if row.requeues else "-",
        "-" if row.seconds_since_sign is None else format_duration(row.seconds_since_sign),
    )


def group_runs(paths: Sequence[Path]) -> tuple[dict[str, list[RunFolder]], list[str]]:
    """The runs of each table, and an error for each path that holds no run.

    Runs that were named themselves are in table ""; those in a folder are in a table with the name of the folder.
    """
    tables: dict[str, list[RunFolder]] = {"": []}
    errors = []
    for path in paths:
        if not path.is_dir():
            errors.append(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        elif is_run(path):
            tables[""].append(RunFolder(path))
        elif found := runs_in(path):
            tables |= found
        else:
            errors.append(f"{path}: contains no run (no config.yaml, no ledger.jsonl)")
    return {name: runs for name, runs in tables.items() if runs}, errors


def runs_in(folder: Path) -> dict[str, list[RunFolder]]:
    """The runs in a folder, and those of each sweep in it, by the path of their parent folder."""
    out = {}
    children = sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    for parent, paths in [(folder, children), *((c, sorted(c.iterdir())) for c in children if not is_run(c))]:
        if runs := [RunFolder(path) for path in paths if is_run(path)]:
            out[str(parent)] = runs
    return out


def query_status(tables: dict[str, list[RunFolder]]) -> tuple[dict[str, list[Status]], str]:
    """The status of all runs, and a warning if Slurm could not be queried."""
    warning, jobs = "", dict[str, QueuedJob]()
    job_ids = {job_id for runs in tables.values() for run in runs if (job_id := newest_job(run))}
    try:
        jobs = slurm_queries.queued_jobs(job_ids)
    except (SlurmUnreachableError, SlurmNotFoundError) as error:
        warning = f"the state of Slurm jobs is unknown: {error}"
    return {name: [status(run, None if warning else jobs) for run in runs] for name, runs in tables.items()}, warning


def format_table(rows: Sequence[Status], width: int) -> str:
    """A table of `width` characters, if possible; a state that is too long is truncated."""
    table = [COLUMNS, *(cells(row) for row in rows)]
    columns = [i for i in range(len(COLUMNS)) if i < 2 or any(row[i] != "-" for row in table[1:])]
    state, widths = COLUMNS.index("state"), [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    others = sum(widths[i] + 2 for i in columns if i != state)
    widths[state] = max(MIN_STATE_WIDTH, min(widths[state], width - others))
    lines = []
    for row in table:
        fitted = row[state] if len(row[state]) <= widths[state] else row[state][: widths[state] - 1] + "…"
        line = [fitted if i == state else row[i] for i in range(len(COLUMNS))]
        lines.append(
            "  ".join(
                line[i].ljust(widths[i]) if COLUMNS[i] in LEFT_ALIGNED else line[i].rjust(widths[i]) for i in columns
            )
        )
    return "\n".join(line.rstrip() for line in lines)


def format_tables(tables: dict[str, list[Status]]) -> str:
    """All tables, each followed by the reasons why runs failed."""
    width = shutil.get_terminal_size((200, 24)).columns
    out = []
    for name, rows in tables.items():
        title = [f"{name} ({counted(len(rows), 'run')}): {count_states(rows)}"] if name else []
        reasons = [f"{row.run}: {row.why}" for row in rows if row.why]
        out.append("\n".join([*title, format_table(rows, width), *reasons]))
    return "\n\n".join(out)


def count_states(rows: Sequence[Status]) -> str:
    """`2 finished, 4 running`."""
    states = [row.state for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a path holds no run, or one that cannot be read."""
    parser = argparse.ArgumentParser(prog="status.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "runs", nargs="*", type=user_path, help="run folders, or folders that contain runs (default: all runs in runs/)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run and line")
    parser.add_argument("--watch", action="store_true", help="refresh the output until Ctrl-C")
    parser.add_argument(
        "--every", type=float, default=5, metavar="SECONDS", help="time between refreshes of --watch (default: 5)"
    )
    options = parser.parse_args(args)
    while True:
        try:
            tables, errors = group_runs(options.runs) if options.runs else (runs_in(Path("runs")), [])
        except OSError as error:  # a folder of runs cannot be listed
            tables, errors = {}, [str(error)]
        found, warning = query_status(tables)
        text = format_tables(found) or (
            "" if errors else "no runs in runs/ yet; to show other runs, name their folders"
        )
        if options.json:
            text = "\n".join(json.dumps(asdict(row)) for rows in found.values() for row in rows)
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[J", end="")
        if text:
            print(text, flush=True)
        for line in [*errors, *filter(None, [warning])]:
            print(f"status.py: {line}", file=sys.stderr)
        if not options.watch:
            return 1 if errors or any(row.state == "unreadable" for rows in found.values() for row in rows) else 0
        time.sleep(options.every)


if __name__ == "__main__":
    run_command(main)
