"""What is known in advance of the time that torch.compile takes.  Imports no torch."""

from collections.abc import Sequence
from contextlib import suppress

from vit.history.attempts import Attempt, read_attempts
from vit.run.folder import Event, RunFolder
from vit.run.progress import format_duration

# Seconds of the first step with torch.compile, of all recipes: `make gpu`, benchmarks/README.md.  The least is with one
# graph for each block, the most with one for the whole model; graphs of several blocks lie between.
MEASURED_DEVICE, MEASURED_SECONDS = "H200", (4, 24)


def describe_compiling(run: RunFolder, device: str, depth: int, has_graphs: bool, sizes: int = 1) -> str:
    """What compiling is announced with; see `compile_message`."""
    events: list[Event] = []
    with suppress(OSError):  # only an estimate depends on it
        events = run.events()
    return compile_message(events, device, depth, has_graphs, sizes)


def compile_message(events: Sequence[Event], device: str, depth: int, has_graphs: bool, sizes: int = 1) -> str:
    """Says what is compiled and how long that takes, as far as it is known.

    `events` are those of the attempts before; `has_graphs`: whether graphs for this `device` are in the run folder;
    `sizes`: for how many image sizes they are compiled now.
    """
    compiled = [a for a in read_attempts(events) if a.device == device and a.seconds.get("compile", 0.0) > 0]
    if has_graphs:
        what = "loading the compiled graphs of this run"
        if not compiled:
            return what
        took = f"{_seconds(compiled[-1])} in attempt {compiled[-1].number}"
        return f"{what}, about {took}" if len(compiled) > 1 else f"{what}; compiling them took {took}"
    what = f"compiling the {depth} blocks" if depth > 1 else "compiling"
    what += f" at each of {sizes} image sizes" if sizes > 1 else ""
    if compiled:
        return f"{what}, about {_seconds(compiled[0])} as in attempt {compiled[0].number}"
    if device == "cpu":
        return f"{what}; not measured on this CPU yet"
    least, most = (sizes * seconds for seconds in MEASURED_SECONDS)
    where = "" if MEASURED_DEVICE in device else f" on an {MEASURED_DEVICE}"
    return f"{what}, about {least} to {most} s the first time{where}"


def _seconds(attempt: Attempt) -> str:
    return format_duration(max(1.0, attempt.seconds["compile"]))
