"""Starts a command's main function, and prints its errors."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from vit.run.console import started_as
from vit.run.disk_errors import explained
from vit.run.garbage_collection import resume_collection
from vit.run.output import protect_output

INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C


def print_error(program: str, error: Exception | str, advice: str = "") -> None:
    """Prints an error in one line on stderr, with the name of the command; `advice` is for errors of files."""
    text = error if isinstance(error, str) else explained(error, advice)
    print(f"{started_as(program)}: {text}", file=sys.stderr)


def run_command(main: Callable[[], int | str | None], keep_going: bool = False) -> NoReturn:
    """Calls `main` and exits with the code that it returns.  Ctrl-C ends it without a traceback.

    The output is protected (see `output.py`).  A command that has work to do beyond printing should `keep_going`.
    """
    resume_collection()
    protect_output(keep_going)
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        sys.stdout.flush()
    sys.exit(code)
