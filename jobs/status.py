"""Shows the state of runs: how far each is, what it waits for, where its time went, and why it ended.

python jobs/status.py runs/*
"""

import gc
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: sys.path[0] is jobs/, except with PYTHONSAFEPATH
    sys.path[: not getattr(sys.flags, "safe_path", False)] = [str(ROOT)]
if __name__ == "__main__":
    gc.disable()  # what is read is no garbage, and looking for some takes a tenth of the time
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()  # before what an older Python does not have

import json
import math
import time
from dataclasses import asdict
from typing import Any

from jobs.watch import screen
from jobs.watch.overview import Overview, SlurmJobs, look
from jobs.watch.run_status import Status
from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.history.notes import notes
from vit.run.command import print_error, run_command
from vit.run.console import started_as

PATIENCE_SECONDS = 1.0  # for which --watch waits for Slurm before it shows its last answer
WIDTH_OF_FILES = 200  # columns of the table, if the output is not a terminal and COLUMNS is not set


def as_json(overview: Overview) -> str:
    """One object per run and line; a single run that was named alone has its `notes`, too."""
    lines = []
    for rows in overview.tables.values():
        for row in rows:
            more = {} if overview.alone is None else {"notes": notes(overview.alone)}
            lines.append(json.dumps(_finite(_as_dict(row) | more)))
    return "\n".join(lines)


def _as_dict(row: Status) -> dict[str, Any]:
    values = asdict(row)
    spent = values.pop("time_spent")
    return values | {"seconds": spent["seconds"], "idle": spent["idle"]}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a path holds no run, or one that cannot be read."""
    parser = CommandParser(prog=started_as("status.py"), description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "runs",
        nargs="*",
        type=user_path,
        help="a run folder, which is shown in detail; or several, or folders that contain runs (default: runs/)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run and line, with all values")
    parser.add_argument("--rank", action="store_true", help="rank the runs by top-1 accuracy, as is done for sweeps")
    parser.add_argument("--watch", action="store_true", help="refresh the output until Ctrl-C")
    parser.add_argument(
        "--every", type=float, default=5, metavar="SECONDS", help="time between refreshes of --watch (default: 5)"
    )
    options = parser.parse_args(args)
    if not options.every > 0:
        parser.error(f"--every must be positive, not {options.every:g}")
    if options.watch:
        gc.enable()
    slurm = SlurmJobs()
    if options.watch and sys.stdout.isatty() and not options.json:
        return screen.watch(lambda: look(options.runs, slurm, PATIENCE_SECONDS), options.every, options.rank)
    while True:
        overview = look(options.runs, slurm)
        text = as_json(overview) if options.json else screen.render(overview, options.rank, WIDTH_OF_FILES)
        if text:
            print(text, flush=True)
        for line in overview.warnings:
            print_error("status.py", line)
        if not options.watch:
            return overview.exit_code
        time.sleep(options.every)


if __name__ == "__main__":
    run_command(main)
