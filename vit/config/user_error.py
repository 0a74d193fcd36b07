"""The exception for what a user can fix."""

from collections.abc import Sequence

_SHOWN = 3


def first_few(items: Sequence[str]) -> str:
    """Up to three items for a message, and how many more there are."""
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


class UserError(ValueError):
    """A wrong setting, argument or input file.  The message names it and says what to do; no traceback is needed.

    Commands print only the message and exit with code 2, and a job that fails with it is not tried again.  Every other
    exception may be a bug or a passing fault of the machine: its traceback is printed, and the job may be retried.
    """


def require(condition: bool, message: str) -> None:
    """Raises UserError with this message unless the condition holds."""
    if not condition:
        raise UserError(message)
