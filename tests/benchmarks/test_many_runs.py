"""A runs folder with many runs costs few file operations and little time, for each command.

benchmarks/many_runs.py measures it with 1,000 runs; here there are fewer, and files are counted rather than seconds.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.faulty_submit import install_slurm
from tests.helpers.many_runs import LONG, write_long_run, write_many_runs
from tests.helpers.paths import ROOT
from vit.checkpoint.format import find_checkpoints, step_of
from vit.config.parser import load_config
from vit.history import learning_curve
from vit.history.learning_curve import read_newest
from vit.history.settings import flattened, read_settings
from vit.run.folder import RunFolder
from vit.run.jsonl import append

RUNS, LEDGER_LINES, CHECKPOINTS = 60, 2_000, 200
# Runs a command, and prints the files that it opened or listed.
COUNTING = """
import json, runpy, sys
opened = []
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        opened.append(arguments[0])
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(json.dumps(opened))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/`."""
    folder = tmp_path_factory.mktemp("many")
    write_many_runs(folder / "runs", RUNS, LEDGER_LINES, CHECKPOINTS)
    return folder


def opened(folder: Path, *command: str) -> list[str]:
    """The files below `runs/` that a command opens, and folders that it lists."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [name for name in json.loads(done.stdout.splitlines()[-1]) if name.startswith("runs/") or "/runs/" in name]


def test_status_opens_the_ledger_and_the_curve_of_each_run_once(folder: Path) -> None:
    """And lists its logs; it does not list checkpoints."""
    found = opened(folder, str(ROOT / "jobs" / "status.py"))
    assert len(found) <= 3 * RUNS + 2
    assert sum(name.endswith("ledger.jsonl") for name in found) == RUNS
    assert not any("checkpoints" in name for name in found)


def test_a_submission_opens_few_files_however_many_runs_and_checkpoints_there_are(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the newest checkpoint's manifest, and that of no other."""
    for name, value in install_slurm(tmp_path / "slurm", keeps_jobs=True).items():
        monkeypatch.setenv(name, value)
    submit = [str(ROOT / "jobs/submit.py"), "--config", str(ROOT / "configs/demo.yaml"), "--cluster", "slurm"]
    submit += ["--data.train", str(betons / "train.beton"), "--data.val", str(betons / "val.beton"), "--name", LONG]
    opened(tmp_path, *submit)
    run = RunFolder(tmp_path / "runs" / LONG)
    cfg = load_config(run.config)
    subprocess.run(["rm", "-r", str(run.path), str(tmp_path / "slurm" / "queue")], check=True)
    write_long_run(run.path, LEDGER_LINES, CHECKPOINTS, cfg)
    found = [name for name in opened(tmp_path, *submit) if "/checkpoints/" in name]
    assert len(run.events()) >= LEDGER_LINES and run.last("submitted") == run.events()[-1]
    assert 1 <= len(found) <= 3


def test_status_of_many_runs_takes_little_time_for_each(folder: Path) -> None:
    """The bound is 1,000 runs in a second; a busy machine gets four times as long."""
    command = [sys.executable, str(ROOT / "jobs" / "status.py")]
    spent = []
    for options in ((), ("--help",)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, *options], cwd=folder, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert spent[0] - spent[1] < 0.004 * RUNS


def test_the_newest_records_are_read_from_the_end_of_a_curve(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a curve of any length; further back only if the last evaluation is there."""
    sizes, pread = [], os.pread

    def counted(file: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(file, size, offset)

    monkeypatch.setattr(learning_curve.os, "pread", counted)
    metrics = RunFolder(folder / "runs" / "run-0001").metrics
    newest = read_newest(metrics)
    assert sum(sizes) == learning_curve.TAIL_BYTES < metrics.stat().st_size / 10
    assert newest.record == newest.evaluation and newest.record["step"] == newest.training["step"] == 300_000
    rare = tmp_path / "metrics.jsonl"
    append(rare, {"step": 1, "val_top1": 0.5})
    for step in range(2, 2000):
        append(rare, {"step": step, "loss": 1.0})
    assert (read_newest(rare).evaluation["step"], read_newest(rare).record["step"]) == (1, 1999)
    rare.write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    assert read_newest(rare) == learning_curve.Newest({"step": 3, "loss": 1.0}, {"step": 3, "loss": 1.0}, {})
    assert read_newest(tmp_path / "nowhere") == learning_curve.Newest({}, {}, {})


def test_the_last_event_is_the_same_as_in_all_events(folder: Path, tmp_path: Path) -> None:
    """It is looked for from the end, without parsing the others; damaged lines and names in texts are passed over."""
    run = RunFolder(folder / "runs" / LONG)
    for name in ("submitted", "started", "stopped", "checkpoint", "finished"):
        assert run.last(name) == next((e for e in reversed(run.events()) if e["event"] == name), None)
    other = RunFolder(tmp_path)
    other.note("started", step=1)
    other.note("failed", why='"started"')
    with other.ledger.open("a") as file:
        file.write('{"event": "started", "st\n[1]\n')
    assert other.last("started", "finished") == other.events()[0]


def test_settings_are_the_same_whether_a_config_is_parsed_in_parts_or_as_a_whole(tmp_path: Path) -> None:
    """The configs of a sweep have most of their parts in common."""
    import yaml

    run = RunFolder(tmp_path)
    texts = [file.read_text() for file in (ROOT / "configs").glob("*.yaml")]
    assert texts
    for text in [*texts, "a: &x 1\nb: *x\n", "a:\n- 1\n- {b: 2}\nc: |\n  d: 3\n", "a: [1,\nb]\n", "a: b: c\n", "- 1\n"]:
        run.config.write_text(text)
        try:
            whole = yaml.safe_load(text)
        except yaml.YAMLError:
            whole = {}
        assert read_settings(run) == (flattened(whole) if isinstance(whole, dict) else {}), text


def test_checkpoints_are_ordered_by_their_step(tmp_path: Path) -> None:
    """Also where a step has more digits than the others."""
    for step in (5, 99_999_999, 100_000_000, 20):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert [step_of(each) for each in find_checkpoints(tmp_path)] == [100_000_000, 99_999_999, 20, 5]
