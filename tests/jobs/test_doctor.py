"""doctor.py as a user calls it: its lines, its last sentence, its exit code; whatever is wrong, and no traceback."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.doctor import format_finding, main, verdict
from jobs.readiness import here
from jobs.readiness.finding import Finding, exit_code, format_bytes
from jobs.readiness.here import check_here, guarded
from jobs.readiness.run_config import check_data
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.readiness import demo, request
from tests.helpers.waiting import wait_for

DOCTOR = [sys.executable, str(ROOT / "jobs" / "doctor.py")]
WITHOUT_SLURM = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}


def doctor(cwd: Path, *options: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command where no Slurm cluster is configured."""
    return subprocess.run(
        [*DOCTOR, *map(str, options)], cwd=cwd, env=WITHOUT_SLURM | environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def data(betons: Path) -> tuple[object, ...]:
    """The demo's config with real data sets."""
    return "--config", CONFIGS / "demo.yaml", "--data.train", betons / "train.beton", "--data.val", betons / "val.beton"


def test_one_line_per_check_and_what_to_do_below_it(betons: Path, tmp_path: Path) -> None:
    """Without a Slurm cluster there is a warning; the run would be executed here."""
    done = doctor(tmp_path, *data(betons), "--gpus", 2)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "this machine"
    assert lines[-2:] == ["", "ready, with 1 warning; the first one: Slurm"]
    checks = [line for line in lines[1:-2] if not line.startswith(" ")]
    assert all(re.match(r"(OK  |WARN|FAIL)  \S.{13}  \S", line) for line in checks), checks
    assert lines[-3].startswith(" " * 22 + "→ "), "the columns are aligned"
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_failed_check_is_named_as_the_first_thing_to_mend(betons: Path, tmp_path: Path) -> None:
    """In the last sentence; and the exit code is 2."""
    done = doctor(tmp_path, *data(betons), "--gpus", 3)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith(
        "not ready: 1 check failed; mend first: batch: 3 ranks do not divide"
    )


def test_each_check_is_one_json_object(betons: Path, tmp_path: Path) -> None:
    """For programs: nothing else is printed, and the exit code is the same."""
    done = doctor(tmp_path, *data(betons), "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(row.keys() == {"check", "level", "text", "advice"} for row in rows)
    assert {"Python", "decoder", "runs folder", "free space", "batch", "data.train", "classes", "Slurm"} <= {
        row["check"] for row in rows
    }
    assert done.returncode == 1


def test_without_a_config_the_checks_that_need_none_are_made(tmp_path: Path) -> None:
    """And a setting of a run needs one."""
    done = doctor(tmp_path)
    assert done.returncode == 1
    assert "free space" in done.stdout and "data.train" not in done.stdout
    refused = doctor(tmp_path, "--optim.lr", "1")
    assert (refused.returncode, refused.stderr) == (2, "doctor.py: settings of a run require --config FILE\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "0"), "--gpus must be at least 1, not 0"),
        (("--config", "none.yaml"), "--config none.yaml: no such file"),
        (("--cluster-config", "none"), "configs/clusters has"),
        (("--time", "tomorrow"), "--time must be HH:MM:SS"),
        (("--partitionn", "a"), "did you mean 'partition'?"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """Before anything is checked."""
    done = doctor(tmp_path, *options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("doctor.py: ") and message in line


def test_options_that_need_slurm_are_a_failure_without_it(tmp_path: Path) -> None:
    """A partition, or two nodes."""
    for options in (("--partition", "gpu"), ("--nodes", "2")):
        done = doctor(tmp_path, *options)
        assert done.returncode == 2
        assert re.search("FAIL  Slurm +(not installed here|Slurm's commands are .*no cluster.*), but the", done.stdout)


def test_levels_are_colored_only_on_a_terminal(tmp_path: Path) -> None:
    """NO_COLOR turns it off there too.  Long lines are wrapped below their column."""

    def on_terminal(**environment: str) -> str:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            DOCTOR, cwd=tmp_path, env=WITHOUT_SLURM | {"TERM": "xterm", "COLUMNS": "80", **environment}, stdout=theirs
        ) as process:
            os.close(theirs)
            out = b""
            while True:
                try:
                    out += os.read(ours, 4096)
                except OSError:  # the command has ended
                    break
        os.close(ours)
        assert process.returncode == 1
        return out.decode().replace("\r\n", "\n")

    colored = on_terminal()
    assert "\x1b[32mOK  \x1b[0m  Python " in colored and "\x1b[33mWARN\x1b[0m  Slurm " in colored
    plain = on_terminal(NO_COLOR="1")
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 80 or "/" in max(plain.splitlines(), key=len), "paths are not broken"


SLOW_TO_REMOVE = f"""
import os, runpy, time
unlink = os.unlink
os.unlink = lambda *args, **options: (time.sleep(0.3), unlink(*args, **options))
runpy.run_path({DOCTOR[1]!r}, run_name="__main__")
"""


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    """Just when the file with which the disk is measured exists."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_REMOVE], cwd=tmp_path, env=WITHOUT_SLURM, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("OK    runs folder"):
        pass
    wait_for(lambda: list(tmp_path.iterdir()), "the file")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_does_not_respond_does_not_hold_up_the_other_checks(betons: Path, tmp_path: Path) -> None:
    """Opening a FIFO blocks, as opening a file does if its server is gone."""
    os.mkfifo(tmp_path / "train.beton.json")
    of = demo(betons, "--data.train", tmp_path / "train.beton", "--runs-dir", tmp_path)
    begun = time.monotonic()
    (found,) = guarded("data", check_data, of, 0.5)
    assert (found.level, found.text) == ("FAIL", "no answer within 0.5 s")
    assert time.monotonic() - begun < 5
    (tmp_path / "train.beton.json").open("w").close()  # the thread ends


def test_a_check_that_raises_is_a_line_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system is named by it; anything else is called a bug.  The other checks are made."""

    def failing(_: object) -> list[Finding]:
        raise OSError(5, "Input/output error", "/data/x")

    def buggy(_: object) -> list[Finding]:
        raise KeyError("x")

    monkeypatch.setattr(here, "CHECKS", (("one", failing), ("two", buggy), ("data", check_data)))
    found = list(check_here(request()))
    assert [finding.level for finding in found] == ["FAIL", "FAIL"]
    assert found[0].text == "/data/x: Input/output error"
    assert found[1].text == "this check failed: KeyError('x')"


def test_the_last_sentence_says_ready_or_what_to_mend_first(capsys: pytest.CaptureFixture[str]) -> None:
    """The first of the worst findings; counts have the right grammar."""
    ok, warning, failure = Finding("a", "OK", "x"), Finding("b", "WARN", "y", "do"), Finding("c", "FAIL", "z", "do")
    assert verdict([ok]) == "ready: 1 check, all OK"
    assert verdict([ok, warning, warning]) == "ready, with 2 warnings; the first one: b"
    assert verdict([warning, failure, ok, failure]) == "not ready: 2 checks failed; mend first: c: z"
    assert [exit_code(found) for found in ([], [ok], [ok, warning], [failure, ok])] == [0, 0, 1, 2]
    assert format_finding(Finding("c", "FAIL", "word " * 12, "do it"), 62, color=False).splitlines() == [
        "FAIL  c               word word word word word word word word",
        "                      word word word word",
        "                      → do it",
    ]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--runs-dir" in capsys.readouterr().out


def test_sizes_are_readable() -> None:
    """In powers of ten, as disks are sold."""
    assert [format_bytes(n) for n in (0, 4096, 999_949, 1.4e9, 230e9, 5e12)] == [
        *("0.0 kB", "4.1 kB", "1.0 MB", "1.4 GB", "230 GB", "5.0 TB"),
    ]
