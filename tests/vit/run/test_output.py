"""Output that cannot be written is lost: it neither fails nor ends what prints it."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.paths import CHECKOUT
from vit.config.schema import to_yaml
from vit.run.folder import RunFolder

PRINT_EVERYTHING = """
import os, sys, warnings
from pathlib import Path
from vit.run.output import protect_output
protect_output(keep_going=True)
from vit.run.progress import show
show("a step")
show("a line with \\N{SNOWMAN}", lasting=True)
warnings.warn("a warning")
print("x" * 100_000)
print("y" * 100_000, file=sys.stderr, flush=True)
file = open(sys.argv[1], "w")
assert file.fileno() > 2
os.write(2, b"a message of a C library\\n")  # may fail, as it may in C
"""


def closed_pipe() -> int:
    """The writing end of a pipe whose reader has gone, as after `| head`."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("kind", ["full disk", "closed pipe", "closed", "pipe that is full and must not wait"])
def test_a_program_whose_output_is_lost_ends_normally(kind: str, tmp_path: Path) -> None:
    """Also if standard error is the same, and no message gets into a file that the program opens."""
    program = PRINT_EVERYTHING.replace("os.write(2", "0 and os.write(2") if kind != "closed" else PRINT_EVERYTHING
    command, reader = [sys.executable, "-c", program, str(tmp_path / "file")], None
    if kind == "closed":
        command, out = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], os.open(os.devnull, os.O_WRONLY)
    elif kind == "full disk":
        out = os.open("/dev/full", os.O_WRONLY)
    elif kind == "closed pipe":
        out = closed_pipe()
    else:
        reader, out = os.pipe()
        os.set_blocking(out, False)
        with suppress(BlockingIOError):
            while True:
                os.write(out, bytes(4096))
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=out, stderr=out, check=False)
    for fd in filter(None, (reader, out)):
        os.close(fd)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_output_that_can_be_written_is_complete(tmp_path: Path) -> None:
    """In order; characters that the terminal's encoding lacks are question marks."""
    command = [sys.executable, "-c", PRINT_EVERYTHING, str(tmp_path / "file")]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "a step\na line with ?\n" + "x" * 100_000 + "\n"
    first, rest = done.stderr.split("\n", 1)
    assert first.endswith("UserWarning: a warning")
    assert rest.endswith("y" * 100_000 + "\na message of a C library\n")


def test_a_training_goes_on_when_the_reader_of_its_output_has_gone(betons: Path, tmp_path: Path) -> None:
    """`python -m vit.train … 2>&1 | head` trains to the end, and the ledger says so."""
    run = RunFolder(tmp_path / "run")
    (tmp_path / "small.yaml").write_text(to_yaml(small_config(betons)))
    command = [sys.executable, "-m", "vit.train", "--config", str(tmp_path / "small.yaml"), "--run-dir", str(run.path)]
    out = closed_pipe()
    done = subprocess.run([*command, "--epochs", "1"], cwd=CHECKOUT, stdout=out, stderr=out, check=False, timeout=60)
    os.close(out)
    assert [event["event"] for event in run.events() if event["event"] in ("finished", "failed")] == ["finished"]
    assert done.returncode == 0


@pytest.mark.parametrize(("columns", "shown"), [(0, "0123456789"), (8, "0123456"), (80, "0123456789")])
def test_a_progress_line_loses_characters_only_where_the_terminal_is_narrow(columns: int, shown: str) -> None:
    """A terminal of 0 columns is one of unknown width.  Messages are always complete."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    program = "from vit.run.progress import show; show('0123456789'); show('a long message', lasting=True)"
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, stdout=theirs, check=True)
    os.close(theirs)
    assert os.read(ours, 1000).decode() == f"\r\x1b[K{shown}\r\x1b[Ka long message\r\n"
    os.close(ours)
