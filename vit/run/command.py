"""Starts a command's main function."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from vit.run.output import protect_output

INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C


def run_command(main: Callable[[], int | str | None], keep_going: bool = False) -> NoReturn:
    """Calls `main` and exits with the code that it returns.  Ctrl-C ends it without a traceback.

    The output is protected (see `output.py`).  A command that has work to do beyond printing should `keep_going`.
    """
    protect_output(keep_going)
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        sys.stdout.flush()
    sys.exit(code)
