"""Runs the checks of one part one after the other, prints a line for each, and collects what they measured."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER_VARIABLE = "GPU_CHECKS_FOLDER"  # the folder for data, runs and logs, which `benchmarks/gpu.py` creates
QUICK_VARIABLE = "GPU_CHECKS_QUICK"
NO_PROFILES_VARIABLE = "GPU_CHECKS_NO_PROFILES"


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    state: str  # "ok"; "WRONG": what it found is not what must hold; "ERROR": it could not run to its end
    seconds: float
    text: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class Checks:
    """The checks of one part, in their order.

    @checks.add
    def copies_are_whole() -> str: ...  # asserts what must hold; returns text for the table, or (text, figures)
    """

    def __init__(self) -> None:
        self._functions: list[Callable[[], Any]] = []
        self._quick: list[Callable[[], Any]] = []

    def add(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Adds a check; used as a decorator."""
        self._functions.append(function)
        return function

    def add_quick(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Adds a check that `--quick` runs too."""
        self._quick.append(function)
        return self.add(function)

    def run(self, only: str = "") -> list[Check]:
        """Runs all checks whose name contains `only`."""
        functions = self._quick if os.environ.get(QUICK_VARIABLE) else self._functions
        return [run_check(function) for function in functions if only in function.__name__]


def run_check(function: Callable[[], Any]) -> Check:
    """Runs one check and prints its line."""
    started, text, figures = time.monotonic(), "", {}
    try:
        result = function() or ""
        text, figures = result if isinstance(result, tuple) else (result, {})
        state = "ok"
    except Exception as error:
        state = "WRONG" if isinstance(error, AssertionError) else "ERROR"
        text = f"{type(error).__name__}: {error}" if state == "ERROR" else str(error)
        traceback.print_exc(limit=-3)
    check = Check(function.__name__.replace("_", " "), state, round(time.monotonic() - started, 2), text, figures)
    print(f"{check.state:<6}{check.seconds:6.1f} s  {check.name}: {check.text}", flush=True)
    return check


def main(checks: Checks) -> None:
    """The command line of a part: `python -m benchmarks.on_gpu.PART [NAME]`; the last line is a JSON array."""
    results = checks.run(sys.argv[1] if len(sys.argv) > 1 else "")
    print(json.dumps([asdict(check) for check in results]))
    sys.exit(int(any(check.state != "ok" for check in results)))


def work_folder() -> Path:
    """The folder for data, runs and logs, which `benchmarks/gpu.py` creates."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    folder.mkdir(parents=True, exist_ok=True)
    return folder
