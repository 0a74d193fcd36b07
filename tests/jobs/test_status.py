"""What status.py says of real run folders: running, killed, finished, half-written, somebody else's."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.login.run_status import spoken
from tests.helpers.paths import ROOT
from tests.jobs.test_submit import ranks_of, settings, start, steps_done, submit, wait_for
from vit.run.folder import RunFolder

STATUS = [sys.executable, str(ROOT / "jobs" / "status.py")]


def look(cwd: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*STATUS, *options], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def row(cwd: Path, run: str = "runs/demo") -> dict[str, object]:
    """One run, as --json has it."""
    (line,) = look(cwd, run, "--json").stdout.splitlines()
    found: dict[str, object] = json.loads(line)
    return found


def test_a_run_of_this_machine_from_its_start_to_its_end(betons: Path, tmp_path: Path) -> None:
    """Running, stopped by Ctrl-C, killed together with all that could have said so, and finished."""
    run = RunFolder(tmp_path / "runs" / "demo")
    longer = settings(betons, epochs=5000)
    command = start(tmp_path, *longer)
    wait_for(lambda: steps_done(run) >= 3, 180)
    assert row(tmp_path)["state"] == "running"
    os.killpg(command.pid, signal.SIGINT)
    command.communicate(timeout=60)
    assert row(tmp_path)["state"] == "stopped"
    command = start(tmp_path, *longer)
    before = len(run.events())
    wait_for(lambda: "started" in {e["event"] for e in run.events()[before:]}, 180)
    os.killpg(command.pid, signal.SIGSTOP)  # so that nobody tells the others
    for process in [*ranks_of(run), *[p for r in ranks_of(run) for p in r.parents() if "submitit" in str(p.cmdline())]]:
        process.kill()
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate()
    killed = row(tmp_path)
    assert killed["state"] == "lost"
    assert "ended without a word" in str(killed["why"])
    short = submit(tmp_path, *settings(betons, epochs=1), "--optim.warmup_epochs", "0", "--name", "short")
    assert short.returncode == 0, short.stderr
    done = row(tmp_path, "runs/short")
    assert (done["state"], done["step"], done["steps"]) == ("finished", 8, 8)
    assert isinstance(done["top1"], float)
    table = look(tmp_path).stdout
    assert table.splitlines()[0] == "runs (2 runs): 1 lost, 1 finished"
    assert table.splitlines()[1].split() == ["run", "state", "step", "%", "loss", "top-1", "last", "sign"]
    assert "8/8  100.0" in table


def test_it_answers_at_once(tmp_path: Path) -> None:
    """A hundred runs with a long learning curve each: no torch, and no curve is read from its beginning."""
    records = [
        {"step": i, "steps": 99_999, "epoch": 1, "epochs": 2, "loss": 1.0, "images_per_second": 9.0}
        for i in range(9999)
    ]
    scored = {"step": 9999, "steps": 99_999, "val_top1": 0.5, "val_top5": 0.9}
    text = "".join(json.dumps(record) + "\n" for record in [*records, scored])
    for i in range(100):
        run = RunFolder(tmp_path / "runs" / "sweep" / f"seed={i}")
        run.path.mkdir(parents=True)
        run.metrics.write_text(text)
        run.record("supervising", life="1.0", node="n1")
    assert min(cpu_seconds([*STATUS, str(tmp_path / "runs")]) for _ in range(3)) < 1
    assert "(100 runs): 100 lost" in look(tmp_path).stdout


def cpu_seconds(command: list[str]) -> float:
    """Of a command, which a busy machine does not make more."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_folders_that_are_half_written_or_somebody_elses(tmp_path: Path) -> None:
    """Each has its clear line, and does not keep the others from theirs."""
    folders = {name: tmp_path / "runs" / name for name in ("frozen", "torn", "binary", "foreign", "gave-up")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["frozen"] / "config.yaml").write_text("epochs: 1\n")
    (folders["torn"] / "ledger.jsonl").write_text('{"event": "supervising", "life": "7.0"}\n{"event": "sta')
    (folders["torn"] / "metrics.jsonl").write_text('{"step": 3, "steps": 9, "loss": 1.5}\n[]\n7\n{"step"')
    (folders["binary"] / "ledger.jsonl").write_bytes(bytes(range(256)))
    (folders["foreign"] / "notes.txt").write_text("mine")
    why = "rank 1 on n2 at step 9: OSError: no\n  Traceback\n2 attempts failed"
    RunFolder(folders["gave-up"]).record("gave up", why=why)
    said = look(tmp_path, *(str(folder) for folder in folders.values()), "runs/none", "runs/torn/ledger.jsonl")
    assert said.returncode == 1
    states = {line.split()[0]: line.split()[1:] for line in said.stdout.splitlines()[1:6]}
    assert states["frozen"][:2] == ["not", "submitted"]
    assert states["torn"][:4] == ["lost", "3/9", "33.3", "1.5000"]
    assert states["binary"][:2] == ["not", "submitted"]
    assert states["gave-up"][:2] == ["gave", "up"]
    assert "gave-up: rank 1 on n2 at step 9: OSError: no; 2 attempts failed" in said.stdout
    assert said.stderr.splitlines() == [
        f"status.py: {folders['foreign']}: holds no run (no config.yaml, no ledger.jsonl)",
        "status.py: runs/none: no such folder",
        "status.py: runs/torn/ledger.jsonl: is no folder",
    ]
    assert "foreign" not in look(tmp_path).stdout


def test_nothing_to_show_says_so(tmp_path: Path) -> None:
    """Where there is no folder runs/ yet."""
    said = look(tmp_path)
    assert said.returncode == 0
    assert "there are no runs in runs/ yet" in said.stdout


def test_it_looks_again_and_again(tmp_path: Path) -> None:
    """`--watch`, until Ctrl-C."""
    RunFolder(tmp_path / "runs" / "one").path.mkdir(parents=True)
    RunFolder(tmp_path / "runs" / "one").record("supervising", life="7.0")
    command = subprocess.Popen([*STATUS, "--watch", "--every", "0.1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    lines = [command.stdout.readline().split()[0] for _ in range(6)]
    assert lines.count("run") >= 2
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=10)
    assert command.returncode == 130


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (125, "2:05"), (9000, "2:30:00"), (200_000, "2 d 7 h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    """As a person would write them."""
    assert spoken(seconds) == text
