"""A command's output is never the reason why it fails: its terminal, its encoding, and a reader that goes away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import CHECKOUT, ROOT
from tests.test_structure import MODULES
from vit.run.command import INTERRUPTED
from vit.run.output import READER_GONE

PRINT = r"""
import sys
from vit.run.command import run_command
def main():
    for i in range(50_000):
        print(f"line {i} \u2026", flush=i == 0)
    print("done \u2026", file=sys.stderr)
    return 3
run_command(main, keep_going=%s)
"""
COMMANDS = {
    "submit": [str(ROOT / "jobs" / "submit.py"), "--help"],
    "status": [str(ROOT / "jobs" / "status.py"), "--help"],
    "write_beton": ["-m", "data_prep.write_beton", "--help"],
    "describe_beton": ["-m", "data_prep.describe_beton", "--help"],
    "check_beton": ["-m", "data_prep.check_beton", "--help"],
    "train": ["-m", "vit.train", "--help"],
}
ENCODINGS: dict[str, dict[str, str]] = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "posix": {"LC_ALL": "POSIX"},
}


def run(*arguments: str, shell: str = 'exec "$@"', **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Runs Python through a shell, which redirects its output."""
    return subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, *arguments],
        cwd=CHECKOUT, env=os.environ | environment, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_every_command_starts_through_run_command() -> None:
    """All modules that can be run, except for the checkpoint writer and the signal probe, which print nothing."""
    commands = {module for module, path in MODULES.items() if 'if __name__ == "__main__":' in path.read_text()}
    assert len(commands) > 10
    for module in commands - {"vit.checkpoint.writer", "jobs.readiness.signal_probe"}:
        assert "    run_command(" in MODULES[module].read_text().partition('if __name__ == "__main__":')[2], module


@pytest.mark.parametrize("environment", ENCODINGS.values(), ids=ENCODINGS)
def test_a_terminal_that_lacks_a_character_shows_a_question_mark(environment: dict[str, str]) -> None:
    done = run("-c", PRINT % False, **environment)
    assert done.returncode == 3
    assert done.stdout.startswith(b"line 0 ")
    assert done.stdout.count(b"\n") == 50_000
    assert done.stderr in {b"done ?\n", "done …\n".encode()}


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_help_is_printed_on_every_terminal(command: list[str], encoding: str) -> None:
    done = run(*command, **ENCODINGS[encoding])
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert b"usage: " in done.stdout.lower()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(redirection: str, tmp_path: Path) -> None:
    """And a file that is opened later does not become the output of child processes."""
    file = tmp_path / "file"
    more = f"    import os\n    file = open({str(file)!r}, 'w')\n    os.system('echo child; echo child >&2')\n"
    program = (PRINT % False).replace("    return 3", f"{more}    return 3")
    done = run("-c", program, shell=f'exec "$@" {redirection}')
    assert done.returncode == 3
    assert file.read_bytes() == b""
    if redirection == ">&-":
        assert done.stderr == "done …\nchild\n".encode()
    elif redirection == "2>&-":
        assert b"child\n" in done.stdout


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_reader_that_has_read_enough_ends_the_command_quietly(keep_going: bool) -> None:
    """As `command | head -1`; a command that has work to do goes on to its end, without its output."""
    done = run("-c", PRINT % keep_going, shell='{ "$@"; echo "code $?" >&2; } | head -n 1')
    assert done.stdout == "line 0 …\n".encode()
    code = 3 if keep_going else READER_GONE
    assert done.stderr.decode() == ("done …\n" if keep_going else "") + f"code {code}\n"


def test_a_command_that_reports_errors_of_files_does_not_report_that_its_reader_is_gone() -> None:
    """`except OSError` around its work does not see it."""
    program = (PRINT % False).partition("run_command(main")[0]
    program += "def report():\n    try: return main()\n    except OSError: return 9\nrun_command(report)"
    done = run("-c", program, shell='{ "$@"; echo $? >&2; } | head -n 1')
    assert done.stderr.decode() == f"{READER_GONE}\n"


def test_ctrl_c_ends_a_command_without_a_traceback() -> None:
    program = "import os, signal\nfrom vit.run.command import run_command\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    done = run("-c", program + "run_command(lambda: os.kill(os.getpid(), signal.SIGINT) or input())")
    assert (done.returncode, done.stderr) == (INTERRUPTED, b"")


def test_ctrl_c_during_the_imports_of_a_command_prints_no_traceback() -> None:
    """They take seconds; the process ends by the signal, as shells expect."""
    code = (
        "from vit.run.dependencies import explain_missing_packages\n"
        "explain_missing_packages()\n"
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
