"""Runs an action in a fork of this process while a disk cannot be read, and counts how such cases end.

Imports only the standard library, so that any Python can run it.
"""

import ctypes
import errno
import gc
import os
import runpy
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.read_layer import ERRORS, Call, Extent, Fault, ReadLayer

TIMEOUT = 120  # seconds; a fork that takes longer is killed, and counts as a problem
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER
Tree = dict[str, bytes | None]  # the files of a folder by their path in it; None for a folder

# Outcomes of a case that is no problem.
UNHARMED = "unharmed"  # the right result, although a call failed
REFUSED = "refused"  # an error that names a file that could not be read, nothing is lost, and the next start goes on
REPEATED = "repeated"  # only for ENOENT: a file that is gone is damage, so an older checkpoint was resumed
ABSENT = "absent"  # only for ENOENT: the result that a missing file gives
OUTCOMES = (UNHARMED, REFUSED, REPEATED, ABSENT)
PROBLEM = "problem"


@dataclass(frozen=True)
class Ended:
    """How a fork ended."""

    code: int  # exit code; negative: killed by this signal
    output: str
    calls: list[Call]  # those that failed; without a fault, all
    error: int  # their errno, 0 if none failed

    @property
    def message(self) -> str:
        """The output, without the stacks of tracebacks."""
        return "\n".join(line for line in self.output.splitlines() if not line.startswith("  "))

    def names_a_file(self) -> bool:
        """Whether a file that could not be read is named, or, if it is gone, the folder that it was in."""
        names = {f"/{call.path.name}" for call in self.calls}
        if self.error == errno.ENOENT:
            names |= {str(call.path.parent) for call in self.calls}
        return any(name in self.message for name in names)


class Forks:
    """Runs actions in forks of this process, which has the layer loaded and has done all imports."""

    def __init__(self, layer: ReadLayer, output: Path) -> None:
        self.layer, self.output = layer, output
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)  # orphaned descendants become our children: none outlives its case

    def run(self, action: Callable[[], object], fault: Fault | None = None, record: bool = False) -> Ended:
        """Runs an action to its end; a value that it returns is part of the output."""
        if record:
            self.layer.record()
        if fault is not None:
            self.layer.arm(fault)
        sys.stdout.flush()
        fork = os.fork()
        if fork == 0:
            _child(action, self.output)
        code = 0
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                break
            if pid == fork:
                code = os.waitstatus_to_exitcode(status)
        calls = self.layer.stop()
        return Ended(code, self.output.read_text(errors="replace"), calls, fault.error if fault is not None else 0)


def _child(action: Callable[[], object], output: Path) -> None:
    """Runs an action as a process of its own would."""
    code: Any = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.alarm(TIMEOUT)
        gc.freeze()  # no garbage collection of inherited objects, which would copy their pages
        value = action()
        if value is not None:
            print(value)
        code = 0
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def command(*arguments: str) -> Callable[[], None]:
    """An action that does what `python ARGUMENTS` does: `-m MODULE …` or `SCRIPT …`."""

    def run() -> None:
        module = arguments[0] == "-m"
        sys.argv = list(arguments[module:])
        if module:
            sys.modules.pop(arguments[1], None)  # or runpy warns
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")

    return run


def read_tree(folder: Path) -> Tree:
    """All files and folders in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def file_kind(path: Path, run: Path) -> str:
    """The kind of a file, for the table."""
    if not path.is_relative_to(run):
        return "data set's manifest" if path.name.endswith(".beton.json") else "data"
    names = {
        "checkpoints": "checkpoints",
        "ledger.jsonl": "ledger",
        "metrics.jsonl": "learning curve",
        "config.yaml": "config",
    }
    parts = path.relative_to(run).parts
    return names.get(parts[0], "other files of the run") if parts else "other files of the run"


@dataclass
class Tally:
    """Counts cases: the command, the kind of file, the error and the outcome of each.

    With a `title`, all commands are counted as one of this name.
    """

    title: str = ""
    cases: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, fault: Fault, run: Path, outcome: str, problems: list[str]) -> None:
        """Counts a case; `outcome` is one of OUTCOMES, and does not matter if there are problems."""
        error = errno.errorcode[fault.error]
        self.cases[self.title or name, file_kind(fault.call.path, run), error, PROBLEM if problems else outcome] += 1
        extent = {Extent.ONCE: "once", Extent.FILE_LOST: "from then on", Extent.DISK_LOST: "and all files from then on"}
        file = fault.call.path.relative_to(run.parent)
        where = f"{name}: {fault.call.call} {fault.nth} of {file}, {error} {extent[fault.extent]}"
        self.problems += [f"{where}: {problem}" for problem in problems]

    def figures(self) -> dict[str, Any]:
        """One row for each command, kind of file and error, and the problems."""
        rows: dict[tuple[str, str, str], dict[str, int]] = {}
        for (command, kind, error, outcome), count in sorted(self.cases.items()):
            rows.setdefault((command, kind, error), {})[outcome] = count
        table = [{"command": row[0], "file": row[1], "error": row[2]} | counts for row, counts in rows.items()]
        return {"cases": sum(self.cases.values()), "table": table, "problems": self.problems}


def readme_table(table: list[dict[str, Any]]) -> list[str]:
    """A Markdown table: a row for each command and kind of file, with the cases of each error by their outcome."""
    errors = [errno.errorcode[error] for error in ERRORS]
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in table:
        rows.setdefault((row["command"], row["file"]), {})[row["error"]] = row
    out = [f"| command | file | cases | {' | '.join(errors)} | problems |", f"|---|---|{'---:|' * (len(errors) + 2)}"]
    for (command, kind), by_error in rows.items():
        outcomes = [[by_error.get(error, {}).get(name, 0) for name in OUTCOMES] for error in errors]
        problems = sum(row.get(PROBLEM, 0) for row in by_error.values())
        cells = [f"{unharmed} + {refused}" + f" + {sum(rest)}" * any(rest) for unharmed, refused, *rest in outcomes]
        cases = sum(map(sum, outcomes)) + problems
        out.append(f"| {command} | {kind} | {cases:,} | {' | '.join(cells)} | {problems:,} |")
    return out
