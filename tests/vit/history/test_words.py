"""What a run says when an attempt begins and when the run ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vit.history.test_attempts import PREEMPTED, event, record, started
from vit.history.attempts import read_attempts
from vit.history.words import finished_line, resuming_line, show_closing, show_end, show_resuming
from vit.run.folder import RunFolder

KILLED = [
    event("supervising", 100, life="7.0", node="n1"),
    started(110, 0, epoch=0.0),
    event("checkpoint", 200, step=1049),
    event("restarting in place", 210, life="7.0", rank=1, node="n1", reason="ended with SIGKILL", step=1061),
]
RESTARTED = started(220, 1049, epoch=2.2345, previous=record(1060, 209, start=10, step=80))


@pytest.mark.parametrize(
    ("events", "line"),
    [
        (KILLED[:2], ""),
        (
            [*KILLED, RESTARTED],
            "resuming at step 1,049 (epoch 2.2), attempt 2; 12 steps repeated",
        ),
        (
            [*KILLED[:3], event("restarting in place", 210, life="7.0", step=1050), RESTARTED | {"previous": None}],
            "resuming at step 1,049 (epoch 2.2), attempt 2; 1 step repeated",
        ),
        (
            [*KILLED, started(220, 0)],
            "starting again at step 0, attempt 2; 1,061 steps repeated",
        ),
        (PREEMPTED[:-1], "resuming at step 50, attempt 2; no step repeated"),
        ([RESTARTED], "resuming at step 1,049 (epoch 2.2)"),  # the ledger cannot be read
    ],
)
def test_a_restart_says_where_it_resumes_and_what_it_repeats(events: list[dict[str, Any]], line: str) -> None:
    """The steps repeated are those after the checkpoint, as far as the failure or the learning curve tells."""
    assert resuming_line(events) == line


def test_the_time_of_a_run_is_that_of_all_its_attempts() -> None:
    """Without the two minutes between them, in which it waited in the queue."""
    attempts = read_attempts(PREEMPTED)
    assert finished_line(attempts) == "finished in 3:41, in 2 attempts (the last one took 1:50)"
    assert finished_line(attempts[:1]) == "finished in 1:51"


def test_a_run_resumes_although_its_ledger_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then the number of the attempt is not known, and at the end nothing is said."""
    run = RunFolder(tmp_path)
    run.ledger.mkdir()
    show_resuming(run, {"step": 1049, "epoch": 2.2345})
    show_end(run)
    assert capsys.readouterr().out == "resuming at step 1,049 (epoch 2.2)\n"


def test_a_run_that_has_ended_says_where_its_time_went_and_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that has given up too; one that has not done a step says nothing."""
    run = RunFolder(tmp_path)
    show_closing(run)
    killed = [KILLED[3] | {"time": time} for time in (180, 190)]
    run.ledger.write_text("".join(json.dumps(e) + "\n" for e in [*PREEMPTED[:-3], *killed, *PREEMPTED[-3:]]))
    show_end(run)
    finished, goodput, note = capsys.readouterr().out.splitlines()
    assert finished == "finished in 3:51, in 4 attempts (the last one took 1:50)"
    assert goodput.startswith("goodput 80.1%: 3:05 of 3:51 on the nodes went into steps that count; ")
    assert note.startswith("note: 2 failures by SIGKILL: ")
