"""`status.py --watch` on a real pseudo-terminal, and the state of runs whose Slurm does not answer."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.local_runs import STATUS, run_status
from tests.helpers.terminal import Terminal
from tests.helpers.watched_runs import write_run
from vit.run.jsonl import append

WATCH = [*STATUS, "--watch", "--every", "0.3"]
ENTER, LEAVE, SHOW_CURSOR, CLEAR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[2J"


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Terminal]:
    """`status.py --watch` of two runs."""
    for name in ("one", "two"):
        write_run(tmp_path / "runs" / name)
    terminal = Terminal(WATCH, tmp_path, columns=120)
    yield terminal
    if terminal.process.poll() is None:
        terminal.process.kill()
        terminal.end()


def test_the_screen_shows_what_is_new_without_flicker(watched: Terminal, tmp_path: Path) -> None:
    """It is written over, and never cleared."""
    lines = watched.wait_until(lambda lines: any("1,000/2,000" in line for line in lines))
    assert lines[0].startswith("runs (2 runs): ")
    assert "Ctrl-C ends" in lines[-1] or "Ctrl-C ends" in lines[-2]
    shown = len(watched.output)
    append(tmp_path / "runs" / "one" / "metrics.jsonl", {"step": 1001, "steps": 2000, "loss": 1.25})
    watched.wait_until(lambda lines: any("1.2500" in line for line in lines))
    assert CLEAR not in watched.output[shown:]


def test_the_screen_follows_the_size_of_the_terminal(watched: Terminal) -> None:
    """At once, not at the next refresh; what has no room is left out, and lines do not wrap."""
    watched.wait_until(lambda lines: "goodput" in lines[1])
    watched.resize(64, 10)
    lines = watched.wait_until(lambda lines: "goodput" not in lines[1] and "top-1" in lines[1])
    assert [line.split()[0] for line in lines[2:4]] == ["one", "two"]
    watched.resize(120, 4)
    watched.wait_until(lambda lines: any("more lines" in line for line in lines))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_whole_afterwards(watched: Terminal, number: signal.Signals) -> None:
    """After Ctrl-C and after a TERM: the screen of before, with its cursor, and no traceback."""
    watched.wait_until(lambda lines: any("1,000/2,000" in line for line in lines))
    if number == signal.SIGINT:
        watched.interrupt()
    else:
        watched.process.send_signal(number)
    assert watched.end() == 128 + number
    assert watched.output.count(ENTER) == watched.output.count(LEAVE) == 1
    assert watched.output.rindex(SHOW_CURSOR) > watched.output.rindex(b"1,000/2,000")
    assert b"Traceback" not in watched.output


def test_without_a_terminal_watch_prints_plain_text(tmp_path: Path) -> None:
    """As for `| tee`."""
    write_run(tmp_path / "runs" / "one")
    command = subprocess.Popen(WATCH, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert command.stdout is not None
    text = "".join(command.stdout.readline() for _ in range(6))
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=10)
    assert "\x1b" not in text
    assert text.count("runs (1 run)") >= 2


def test_rich_is_imported_only_to_watch(tmp_path: Path) -> None:
    """It takes as long as everything else."""
    write_run(tmp_path / "run")
    script = f"import sys; sys.argv = ['status.py', 'run']; sys.path.insert(0, {str(Path(STATUS[1]).parents[1])!r})\n"
    script += "from jobs.status import main; main()\n"
    script += "print([name for name in ('rich', 'torch', 'numpy', 'jsonargparse') if name in sys.modules])"
    done = subprocess.run([STATUS[0], "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def slurm_that(folder: Path, does: str) -> str:
    """The PATH with a `squeue` that does this."""
    folder.mkdir()
    (folder / "squeue").write_text(f"#!/bin/sh\n{does}\n")
    (folder / "squeue").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("exec sleep 60", "Slurm does not respond"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Slurm does not respond"),
    ],
)
def test_everything_but_the_jobs_is_shown_if_slurm_does_not_answer(
    tmp_path: Path, does: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning says so; the command does not wait longer than its limit."""
    write_run(tmp_path / "run")
    monkeypatch.setenv("PATH", slurm_that(tmp_path / "bin", does))
    started = time.monotonic()
    done = run_status(tmp_path, "run")
    assert time.monotonic() - started < 12
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "run: unknown (job 7), job 7"
    assert "epoch 5.00 of 10" in done.stdout
    assert done.stderr.startswith(f"status.py: the state of Slurm jobs is unknown: {message}")


def test_a_slow_slurm_does_not_hold_up_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows what the run folders say, with the newest answer that came."""
    run = write_run(tmp_path / "runs" / "one")
    answer = tmp_path / "answered"
    does = f"[ -e {answer} ] && exec sleep 60; touch {answer}; echo '7|RUNNING|None|n1|2026-11-28T04:00:00'"
    monkeypatch.setenv("PATH", slurm_that(tmp_path / "bin", does))
    terminal = Terminal(WATCH, tmp_path, columns=120)
    terminal.wait_until(lambda lines: any("running (n1)" in line for line in lines))
    append(run.metrics, {"step": 1001, "steps": 2000, "loss": 1.25})
    started = time.monotonic()
    terminal.wait_until(lambda lines: any("1.2500" in line and "running (n1)" in line for line in lines))
    assert time.monotonic() - started < 4
    terminal.interrupt()
    terminal.end()


def test_on_a_low_terminal_a_run_has_fewer_attempts_and_its_log(tmp_path: Path) -> None:
    """What is at the end of the page is not cut off."""
    write_run(tmp_path / "run", attempts=20, steps=2000, of=4000)
    terminal = Terminal([*WATCH, "run"], tmp_path, columns=120, rows=42)
    lines = terminal.wait_until(lambda lines: any("epoch 19" in line for line in lines))
    assert any("earlier attempts: " in line for line in lines)
    assert lines[0].startswith("run: ")
    terminal.interrupt()
    terminal.end()
