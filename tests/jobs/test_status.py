"""status.py on real run folders: of running, killed and finished runs, incomplete ones, and other folders."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.watch.run_status import status
from tests.helpers.local_runs import STATUS, ranks_of, run_status, settings, start, steps_done
from tests.helpers.paths import CHECKOUT
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder
from vit.run.jsonl import append
from vit.run.progress import format_duration


def status_of(cwd: Path, run: str) -> dict[str, object]:
    """The status of one run, from --json."""
    (line,) = run_status(cwd, run, "--json").stdout.splitlines()
    status: dict[str, object] = json.loads(line)
    return status


def test_status_of_a_running_a_killed_and_a_finished_run(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path
) -> None:
    """A run whose processes were all killed, so that none could record it, is lost."""
    run = RunFolder(tmp_path / "runs" / "demo")
    command = start(tmp_path, *settings(betons, epochs=5000))
    wait_for(lambda: steps_done(run) >= 3, "step 3", 180)
    assert status_of(tmp_path, "runs/demo")["state"] == "running"
    os.killpg(command.pid, signal.SIGSTOP)  # so that it does not stop the others when the first one is killed
    supervisors = [p for rank in ranks_of(run) for p in rank.parents() if "submitit" in str(p.cmdline())]
    for process in [*ranks_of(run), *supervisors]:
        process.kill()
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate()
    killed = status_of(tmp_path, "runs/demo")
    assert killed["state"] == "lost"
    assert "ended without recording a reason" in str(killed["why"])
    shutil.copytree(finished[0].path, tmp_path / "runs" / "short")
    done = status_of(tmp_path, "runs/short")
    assert (done["state"], done["step"], done["steps"]) == ("finished", 48, 48)
    assert isinstance(done["top1"], float)
    lines = run_status(tmp_path).stdout.splitlines()
    assert lines[0] == "runs (2 runs): 1 lost, 1 finished"
    header = "run state epoch step % loss top-1 data wait goodput last update"
    assert lines[1].replace("data wait  ", "").split() == header.replace("data wait ", "").split()
    assert any("48/48  100.0" in line for line in lines)


WAIT = """
import sys
from pathlib import Path
from jobs.node.submitter_lock import submitting
from vit.run.folder import RunFolder

with submitting(RunFolder(Path(sys.argv[1]))):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_waits_for_others_of_its_sweep_is_queued(tmp_path: Path) -> None:
    """On this machine submit.py locks all runs of a sweep at once, also those that an earlier command has begun."""
    run = RunFolder(tmp_path / "seed=0")
    run.path.mkdir()
    earlier = {"event": "supervising", "life": "1.0", "time": time.time() - 60}
    append(run.ledger, earlier)
    submitter = subprocess.Popen(
        [sys.executable, "-c", WAIT, str(run.path)], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert submitter.stdout is not None
    submitter.stdout.readline()
    expected = ["queued", "running", "running", "running", "queued"]
    states = [status(run, {}).state]
    for event in ("supervising", "started", "failed", "stopped"):
        run.record(event, life="2.0")
        states.append(status(run, {}).state)
    submitter.communicate()
    assert states == expected
    assert status(run, {}).state == "stopped"


def test_a_hundred_runs_with_long_learning_curves_take_less_than_a_second(tmp_path: Path) -> None:
    """torch is not imported, and only the end of each learning curve is read."""
    records = [
        {"step": i, "steps": 99_999, "epoch": 1, "epochs": 2, "loss": 1.0, "images_per_second": 9.0}
        for i in range(9999)
    ]
    evaluation = {"step": 9999, "steps": 99_999, "val_top1": 0.5, "val_top5": 0.9}
    text = "".join(json.dumps(record) + "\n" for record in [*records, evaluation])
    for i in range(100):
        run = RunFolder(tmp_path / "runs" / "sweep" / f"seed={i}")
        run.path.mkdir(parents=True)
        run.metrics.write_text(text)
        run.record("supervising", life="1.0", node="n1")
    assert min(cpu_seconds([*STATUS, str(tmp_path / "runs")]) for _ in range(3)) < 1
    assert "(100 runs): 100 lost" in run_status(tmp_path).stdout


def cpu_seconds(command: list[str]) -> float:
    """CPU time of a command, which does not depend on the load of the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_incomplete_run_folders_and_other_folders(tmp_path: Path) -> None:
    """Each gets a row or an error of its own, and does not affect the others."""
    folders = {name: tmp_path / "runs" / name for name in ("config-only", "truncated", "binary", "other", "gave-up")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["config-only"] / "config.yaml").write_text("epochs: 1\n")
    (folders["truncated"] / "ledger.jsonl").write_text('{"event": "supervising", "life": "7.0"}\n{"event": "sta')
    (folders["truncated"] / "metrics.jsonl").write_text('{"step": 3, "steps": 9, "loss": 1.5}\n[]\n7\n{"step"')
    (folders["binary"] / "ledger.jsonl").write_bytes(bytes(range(256)))
    (folders["other"] / "notes.txt").write_text("mine")
    why = "rank 1 on n2 at step 9: OSError: no\n  Traceback\n2 attempts failed"
    RunFolder(folders["gave-up"]).record("gave up", why=why)
    paths = [*map(str, folders.values()), "runs/none", "runs/truncated/ledger.jsonl"]
    shown = run_status(tmp_path, *paths)
    assert shown.returncode == 1
    states = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines()[1:6]}
    assert states["config-only"][:2] == ["not", "submitted"]
    assert states["truncated"][:4] == ["lost", "3/9", "33.3", "1.5000"]
    assert states["binary"][:2] == ["not", "submitted"]
    assert states["gave-up"][:2] == ["gave", "up"]
    assert "gave-up: rank 1 on n2 at step 9: OSError: no; 2 attempts failed" in shown.stdout
    assert shown.stderr.splitlines() == [
        f"status.py: {folders['other']}: contains no run (no config.yaml, no ledger.jsonl)",
        "status.py: runs/none: no such folder",
        "status.py: runs/truncated/ledger.jsonl: not a folder",
    ]
    assert "other" not in run_status(tmp_path).stdout


def test_without_runs_status_says_so(tmp_path: Path) -> None:
    """There is no folder runs/ yet."""
    shown = run_status(tmp_path)
    assert shown.returncode == 0
    assert "no runs in runs/ yet" in shown.stdout


def test_watch_refreshes_the_table_until_ctrl_c(tmp_path: Path) -> None:
    """Every `--every` seconds."""
    RunFolder(tmp_path / "runs" / "one").path.mkdir(parents=True)
    RunFolder(tmp_path / "runs" / "one").record("supervising", life="7.0")
    command = subprocess.Popen([*STATUS, "--watch", "--every", "0.1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    first_words = [command.stdout.readline().split()[0] for _ in range(6)]
    assert first_words.count("run") >= 2
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=10)
    assert command.returncode == 130


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (125, "2:05"), (9000, "2:30:00"), (200_000, "2 d 7 h")]
)
def test_durations_are_printed_in_a_suitable_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
