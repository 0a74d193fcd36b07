"""The page of one run of `status.py`."""

import re
from pathlib import Path

import pytest

from jobs.slurm.tables import QueuedJob
from jobs.watch.colors import plain
from jobs.watch.details import with_details, with_history
from jobs.watch.drawing import apportion, sparkline
from jobs.watch.run_page import run_page
from jobs.watch.run_status import status
from jobs.watch.table import format_tables
from jobs.watch.words import width
from tests.helpers.local_runs import run_status
from tests.helpers.watched_runs import BEGAN, write_lines, write_run
from vit.run.folder import RunFolder


def page(run: RunFolder, columns: int = 120) -> str:
    """The page of a run whose job is running."""
    row = with_details(status(run, {"7": QueuedJob("RUNNING", "None", "n1")}), run)
    return plain("\n".join(run_page(*with_history(row, run), columns)))


def test_the_page_shows_attempts_time_curve_notes_and_log(tmp_path: Path) -> None:
    """Of a run that was preempted twice, and whose third attempt runs."""
    text = page(write_run(tmp_path / "run"))
    sections = {part.splitlines()[0]: part.splitlines()[1:] for part in text.split("\n\n")}
    attempts = sections["attempts"]
    assert attempts[0].split() == ["began", "queue", "ran", "steps", "node", "ended"]
    assert [line.split()[0] for line in attempts[1:]] == ["1", "2", "3"]
    assert "0 → 300" in attempts[1] and attempts[1].endswith("preempted")
    assert attempts[3].endswith("running")
    bar, legend = sections["time"][1], " ".join(sections["time"][2:])
    assert bar.strip("·░▓█◆▚─ ") == "" and bar.count("█") > 50
    assert "█ steps 5:20" in legend and "· queue" in legend
    assert [line.split()[0] for line in sections["learning curve"]] == ["loss", "top-1", "images/s"]
    assert sections["logs/rank-0.log"] == [f"  epoch {i}" for i in range(14, 20)]
    assert "goodput" in sections["time"][0]


def test_a_rank_that_is_slow_now_is_named(tmp_path: Path) -> None:
    """On the page of the run, in the table and as JSON; not once it has recovered."""
    run = write_run(tmp_path / "run")
    place = {"rank": 3, "node": "n2", "ratio": 1.6}
    run.note("slow rank", **place, gpu="", what="data", seconds=0.31, others=0.02)
    line = "rank 3 on n2 is slow: 1.60 times the median; it waits for images 0.310 s of each step, others 0.020 s"
    assert f"\n  {line}\n" in page(run)
    row = status(run, {"7": QueuedJob("RUNNING", "None", "n1")})
    assert row.slow_ranks == (line,)
    assert f"run: {line}" in format_tables({"": [row]}, 120)
    run.note("rank recovered", **place)
    assert line not in page(run)


@pytest.mark.parametrize("columns", [200, 120, 80, 60])
def test_the_page_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    """Also with long reasons and long lines in the log."""
    run = write_run(tmp_path / "run")
    why = "an error " * 30
    run.note("restarting in place", life="7.2", rank=3, node="n1", reason=f"RuntimeError: {why}", step=900)
    (run.logs / "rank-0.log").write_text("日本" * 200 + "\n")
    lines = page(run, columns).splitlines()
    assert max(map(width, lines[1:])) <= columns
    assert "rank 3 on n1: " in "\n".join(lines)


def test_of_many_attempts_the_newest_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    """By why they ended."""
    text = page(write_run(tmp_path / "run", attempts=30, steps=3000, of=6000))
    assert "18 earlier attempts: 18 preempted" in text
    assert re.search(r"\n  30  ", text) and not re.search(r"\n  18  ", text)


def test_the_log_is_that_of_the_rank_that_failed(tmp_path: Path) -> None:
    """Without colors, cursor movements and progress lines that were overwritten."""
    run = write_run(tmp_path / "run")
    run.note("failed", rank=2, error="RuntimeError: boom")
    (run.logs / "rank-2.log").write_bytes(b"step 1\rstep 2\n\x1b[31mRuntimeError: boom\x1b[0m\x00\xff\n")
    assert page(run).splitlines()[-3:] == ["logs/rank-2.log", "  step 2", "  RuntimeError: boom\ufffd"]


def test_a_run_without_a_step_is_shown_with_what_there_is(tmp_path: Path) -> None:
    """Its state, its attempt and its log."""
    run = write_run(tmp_path / "run", attempts=1, steps=0)
    text = page(run)
    assert "no step yet" in text and "epoch 19" in text and "learning curve" not in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "ledger.jsonl",
            b'{"event": "supervising", "time": 1e300}\n{"event": "st',
            "ledger.jsonl: 1 line of 2 is damaged",
        ),
        ("ledger.jsonl", bytes(range(256)) * 9, "ledger.jsonl: 10 lines of 10 are damaged"),
        (
            "metrics.jsonl",
            b'{"step": 3}\n[]\n\xff\n{"step": "x", "loss": {}}\n',
            "metrics.jsonl: 2 lines of 4 are damaged",
        ),
        ("config.yaml", b"a: [1\n", "config.yaml is damaged: it holds no settings"),
        ("config.yaml", b"model: {depth: x, width: 0}\nepochs: many\noptim: 5\n", "epoch 5.00 of 10"),
        (
            "logs/resources-n1.json",
            b'{"attempts": [1, {"began": 2, "seconds": 3, "gpus": [4, {"utilization": []}]}]}',
            "top-1",
        ),
        ("logs/resources-n1.json", b"[]", "top-1 25.00%"),
    ],
)
def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    """In the page, in the table and in JSON, without a traceback."""
    run = write_run(tmp_path / "run")
    (run.path / file).write_bytes(content)
    for options in (["run"], ["run", "run"], ["run", "--json"], ["run", "run", "--rank"]):
        done = run_status(tmp_path, *options)
        assert (done.returncode, done.stderr) == (0, "" if "ledger" in file else done.stderr), options
        assert "Traceback" not in done.stderr
    text = page(run)
    assert message in text
    assert "epoch 19" in text, "the log"


def test_events_and_fields_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    """Also those that have other types there."""
    run = write_run(tmp_path / "run")
    before = page(run)
    events = run.events()
    new = [
        {"event": "teleported", "time": BEGAN + 1, "to": ["n9"]},
        {"event": "checkpoint", "time": "soon", "step": "many"},
        {"event": ["a", "list"], "time": BEGAN + 2},
        {"event": "started", "time": -1e300, "step": 10**400},
        {"event": "stopped", "time": float("nan")},
        {"time": 5},
    ]
    write_lines(run.ledger, [*events[:5], *new, *[e | {"weather": "sunny"} for e in events[5:]]])
    assert page(run).split("newest")[0] == before.split("newest")[0]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The others are shown; the exit code says so."""
    run = write_run(tmp_path / "run")
    run.metrics.unlink()
    run.metrics.mkdir()
    done = run_status(tmp_path, "run")
    assert done.returncode == 1
    assert done.stdout.startswith("run: unreadable\n")
    assert "Is a directory" in done.stdout


def test_a_sparkline_shows_all_values_by_their_means() -> None:
    """As many values per character as it takes."""
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 4, 4], 2) == "▁█"
    assert sparkline([3, 3, 3], 10) == "▁▁▁"
    assert sparkline([], 10) == ""


def test_bars_are_as_long_as_their_shares() -> None:
    """To one character, and as long as the line together."""
    assert apportion([50, 25, 25], 8) == [4, 2, 2]
    assert sum(apportion([1, 1, 1], 10)) == 10
    assert apportion([0, 0], 10) == [0, 0]


def test_what_cannot_be_read_besides_the_state_is_named_too(tmp_path: Path) -> None:
    """The use of GPUs, the config: everything else is shown, and the exit code is 1."""
    run = write_run(tmp_path / "run")
    (run.logs / "resources-n1.json").mkdir()
    for options, text in ((["run"], "epoch 5.00 of 10"), (["run", "run"], "25.00%")):
        done = run_status(tmp_path, *options)
        assert done.returncode == 1
        assert "Is a directory: 'run/logs/resources-n1.json'" in done.stdout
        assert text in done.stdout
