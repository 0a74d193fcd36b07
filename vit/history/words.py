"""What a run says when an attempt begins and when the run ends.  Imports no torch."""

from collections.abc import Sequence
from contextlib import suppress

from vit.history.attempts import Attempt, read_attempts
from vit.history.notes import notes
from vit.history.run_history import read_history
from vit.history.time_spent import time_spent
from vit.run.counts import counted
from vit.run.folder import Event, RunFolder
from vit.run.progress import format_duration, show


def resuming_line(events: Sequence[Event]) -> str:
    """`resuming at step 1,049 (epoch 2.2), attempt 3; 12 steps repeated`, of the newest attempt that began to train.

    Empty for a run that begins.  Needs only the newest `started` event; without the others, less is said.
    """
    started = next((event for event in reversed(events) if event["event"] == "started"), None)
    if started is None:
        return ""
    attempts = read_attempts(events)
    step, number = started.get("step", 0), len(attempts)
    if not step and number <= 1:
        return ""
    epoch = f" (epoch {started['epoch']:.1f})" if isinstance(started.get("epoch"), int | float) else ""
    line = f"resuming at step {step:,}{epoch}" if step else "starting again at step 0"
    if number <= 1:  # the ledger cannot be read, or is not that of the whole run
        return line
    before = next((a for a in reversed(attempts[:-1]) if a.started is not None), None)
    if before is None:
        return f"{line}, attempt {number}"
    return (
        f"{line}, attempt {number}; {counted(before.lost_steps, 'step') if before.lost_steps else 'no step'} repeated"
    )


def finished_line(attempts: Sequence[Attempt]) -> str:
    """`finished in 3:12:05, in 4 attempts (the last one took 42:10)`: the time on the nodes, without the queue."""
    seconds = time_spent(attempts).on_nodes
    if len(attempts) < 2:
        return f"finished in {format_duration(seconds)}"
    last = format_duration(attempts[-1].duration)
    return f"finished in {format_duration(seconds)}, in {len(attempts)} attempts (the last one took {last})"


def closing_lines(run: RunFolder) -> list[str]:
    """What is said of a run that has ended: its goodput, and what to change.  Empty if it has no step.

    Raises OSError if a file of the run cannot be read.
    """
    history = read_history(run)
    return [] if history.spent.goodput is None else [history.spent.describe(), *notes(history)]


def show_resuming(run: RunFolder, started: Event) -> None:
    """Prints at which step a run resumes, in which attempt, and how many steps are repeated.

    `started` has the step and the epoch, for a ledger that cannot be read.
    """
    try:
        events = run.events()
    except OSError:  # the run can do without
        events = [started | {"event": "started"}]
    if line := resuming_line(events):
        show(line, lasting=True)


def show_end(run: RunFolder) -> None:
    """Prints how long a finished run took, its goodput, and what to change, as far as the ledger can be read."""
    with suppress(OSError):
        show(finished_line(read_attempts(run.events())), lasting=True)
    show_closing(run)


def show_closing(run: RunFolder) -> None:
    """Prints the goodput of a run that has ended, and what to change, as far as its files can be read."""
    with suppress(OSError):
        for i, line in enumerate(closing_lines(run)):
            show(f"note: {line}" if i else line, lasting=True)
