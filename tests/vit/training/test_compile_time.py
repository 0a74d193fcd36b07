"""The announcement of compiling says how long it takes, as far as that is known."""

from pathlib import Path

from tests.vit.history.test_attempts import event, record, started
from vit.run.folder import Event, RunFolder
from vit.training.compile_time import compile_message, describe_compiling

GPU = "NVIDIA A100"


def test_nothing_is_invented_about_a_device_that_was_not_measured() -> None:
    """All groups of blocks share one graph, so the number of blocks does not tell the time."""
    assert compile_message([], "cpu", 12, False) == "compiling the 12 blocks; not measured on this CPU yet"
    assert compile_message([], "NVIDIA H200", 12, False).endswith("12 blocks, about 4 to 24 s the first time")
    assert compile_message([], "NVIDIA H200", 12, False, sizes=3) == (
        "compiling the 12 blocks at each of 3 image sizes, about 12 to 72 s the first time"
    )
    assert compile_message([], GPU, 1, False) == "compiling, about 4 to 24 s the first time on an H200"


def test_an_earlier_attempt_tells_how_long_it_takes() -> None:
    """On the same kind of device; with its graphs it takes less time, which is known from the second attempt on."""
    killed = [event("supervising", 100, life="7.0"), started(110, 0), event("requeueing", 250, life="7.0", step=9)]
    events: list[Event] = [
        *killed,
        event("supervising", 300, life="7.1"),
        started(310, 5, previous=record(8, 240, start=10, compile=82, step=30)),
    ]
    assert compile_message(events, GPU, 2, False).endswith("2 blocks, about 82 s as in attempt 1")
    assert compile_message(events, GPU, 2, True) == (
        "loading the compiled graphs of this run; compiling them took 82 s in attempt 1"
    )
    events += [
        event("stopped", 400, step=20, seconds={"compile": 6.4}),
        event("supervising", 500, life="7.2"),
        started(510, 20),
    ]
    assert compile_message(events, GPU, 2, True) == "loading the compiled graphs of this run, about 6 s in attempt 2"
    assert "not measured" in compile_message(events, "cpu", 2, False)


def test_compiling_is_announced_although_the_ledger_cannot_be_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.ledger.mkdir()
    assert describe_compiling(run, "cpu", 12, has_graphs=False).startswith("compiling the 12 blocks")
