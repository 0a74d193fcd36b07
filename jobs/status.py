"""How runs are doing: where each is, what it waits for, and why it ended.  It reads run folders, and asks Slurm once.

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
if not __package__:  # run as a script, with jobs/ in the first place
    sys.path[0] = str(ROOT)

from jobs.login import slurm_queries
from jobs.login.run_status import Status, is_run, newest_job, status
from jobs.login.slurm_queries import NoSlurmError, Queued, SilentError
from vit.run.folder import RunFolder

COLUMNS = ("run", "state", "step", "%", "loss", "top-1", "images/s", "left", "restarts", "requeues", "last sign")
LEFT = {"run", "state"}  # the columns that are aligned so; others are numbers


def groups(paths: Sequence[Path]) -> tuple[dict[str, list[RunFolder]], list[str]]:
    """The runs to show, a table of those named and one for each folder of some; and a line for each path without."""
    tables: dict[str, list[RunFolder]] = {"": []}
    wrong = []
    for path in paths:
        if not path.is_dir():
            wrong.append(f"{path}: {'is no folder' if path.exists() else 'no such folder'}")
        elif is_run(path):
            tables[""].append(RunFolder(path))
        elif found := below(path):
            tables |= found
        else:
            wrong.append(f"{path}: holds no run (no config.yaml, no ledger.jsonl)")
    return {name: runs for name, runs in tables.items() if runs}, wrong


def below(folder: Path) -> dict[str, list[RunFolder]]:
    """The runs in a folder, and those of each sweep in it."""
    out = {}
    children = sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    for place, inside in [(folder, children), *((c, sorted(c.iterdir())) for c in children if not is_run(c))]:
        if runs := [RunFolder(child) for child in inside if is_run(child)]:
            out[str(place)] = runs
    return out


def look(tables: dict[str, list[RunFolder]]) -> tuple[dict[str, list[Status]], str]:
    """How all of them are doing, and what is to be said about Slurm."""
    told, jobs = "", dict[str, Queued]()
    asked = {number for runs in tables.values() for run in runs if (number := newest_job(run))}
    try:
        jobs = slurm_queries.jobs(asked)
    except (SilentError, NoSlurmError) as error:
        told = f"what Slurm has is not known: {error}"
    return {name: [status(run, None if told else jobs) for run in runs] for name, runs in tables.items()}, told


def table(rows: Sequence[Status], width: int) -> str:
    """Lines of equal columns; a state that would not fit goes on below."""
    cells = [COLUMNS, *(row.cells() for row in rows)]
    shown = [i for i in range(len(COLUMNS)) if i < 2 or any(row[i] != "-" for row in cells[1:])]
    state, widths = COLUMNS.index("state"), [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    others = sum(widths[i] + 2 for i in shown if i != state)
    widths[state] = max(12, min(widths[state], width - others))
    lines = []
    for row in cells:
        words = row[state] if len(row[state]) <= widths[state] else row[state][: widths[state] - 1] + "…"
        line = [words if i == state else row[i] for i in range(len(COLUMNS))]
        lines.append(
            "  ".join(line[i].ljust(widths[i]) if COLUMNS[i] in LEFT else line[i].rjust(widths[i]) for i in shown)
        )
    return "\n".join(line.rstrip() for line in lines)


def shown(tables: dict[str, list[Status]]) -> str:
    """All tables, one below the other; why a run ended is told in full below its table."""
    width = shutil.get_terminal_size((200, 24)).columns
    out = []
    for name, rows in tables.items():
        reasons = [f"{row.run}: {row.why}" for row in rows if row.why]
        out.append(
            "\n".join(
                [*([f"{name} ({len(rows)} runs): {summary(rows)}"] if name else []), table(rows, width), *reasons]
            )
        )
    return "\n\n".join(out)


def summary(rows: Sequence[Status]) -> str:
    """`2 finished, 4 running`."""
    states = [row.state for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a path that was named holds no run."""
    parser = argparse.ArgumentParser(prog="status.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, or folders of runs (default: all in runs/)")
    parser.add_argument("--json", action="store_true", help="one JSON object for each run, a line each")
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument("--every", type=float, default=5, metavar="SECONDS", help="between two looks (default: 5)")
    options = parser.parse_args(args)
    while True:
        tables, wrong = groups(options.runs) if options.runs else (below(Path("runs")), [])
        found, told = look(tables)
        text = shown(found) or ("" if wrong else "there are no runs in runs/ yet; name other folders, if you have some")
        if options.json:
            text = "\n".join(json.dumps(asdict(row)) for rows in found.values() for row in rows)
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[J", end="")
        if text:
            print(text, flush=True)
        for line in [*wrong, *filter(None, [told])]:
            print(f"status.py: {line}", file=sys.stderr)
        if not options.watch:
            return 1 if wrong else 0
        time.sleep(options.every)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
