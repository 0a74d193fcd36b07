"""report.py with folders that are no runs, and runs with damaged files: a clear line, everything else is shown."""

import copy
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.page.document import run_page
from jobs.page.run_data import read_run
from jobs.page.runs_page import runs_page
from tests.helpers.report_runs import curve, ledger, write_run
from tests.jobs.page.conftest import Report

GARBAGE: list[Any] = [None, "x", math.nan, math.inf, -1, 1e308, 10**400, 1e-320, True, [], {}, {"a": "b"}, 0]


def test_a_run_is_written_beside_itself_with_pictures(tmp_path: Path, report: Report) -> None:
    """The command prints what it wrote; nothing else is printed."""
    run = write_run(tmp_path / "vit_b16")
    done = report(run)
    assert (done.returncode, done.stderr) == (0, "")
    written = ("report.html", "report-pictures/curves.png", "report-pictures/time.png")
    assert done.stdout.splitlines() == [f"{run}/{name}" for name in written]
    assert (run / "report.html").stat().st_size < 1e6


def test_what_is_no_run_is_named_and_the_others_are_shown(tmp_path: Path, report: Report) -> None:
    """A missing folder, a file, and a folder without runs: a line each, exit code 1, and the report of the rest."""
    run = write_run(tmp_path / "good")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / name for name in ("missing", "file", "empty", "good")]
    done = report(*paths, "--out", tmp_path / "x.html")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"report.py: {paths[2]}: not a run folder, and contains none (no config.yaml, no ledger.jsonl)",
        f"report.py: {paths[0]}: no such folder",
        f"report.py: {paths[1]}: not a folder",
    ]
    assert b"<h1>good</h1>" in (tmp_path / "x.html").read_bytes()
    assert run.is_dir()


@pytest.mark.parametrize("out", ["x.txt", "x", "no-such-file/x.html"])
def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path, report: Report, out: str) -> None:
    """A name of another kind, and a folder that is a file."""
    (tmp_path / "no-such-file").write_text("")
    done = report(write_run(tmp_path / "a"), "--out", tmp_path / out)
    assert done.returncode == 1
    assert done.stderr.startswith("report.py: ") and len(done.stderr.splitlines()) == 1


def test_a_ledger_that_is_cut_in_the_middle_is_named(tmp_path: Path) -> None:
    """The events before it are shown."""
    run = write_run(tmp_path / "a")
    text = (run / "ledger.jsonl").read_text()
    (run / "ledger.jsonl").write_text(text[: text.index("SIGKILL")])
    data = read_run(run, {})
    assert data.problems == ["ledger.jsonl: 1 line of 9 is damaged, and left out"]
    assert len(data.attempts) == 2
    assert b"1 line of 9 is damaged" in run_page(data)


def test_values_that_are_not_finite_are_counted_and_the_others_drawn(tmp_path: Path) -> None:
    """NaN and infinity, text, lists, and numbers of a thousand digits."""
    records = curve()
    for record, value in zip(records, [*GARBAGE, "NaN"], strict=False):
        record["loss"] = value
    data = read_run(write_run(tmp_path / "a", records), {})
    assert len(data.curves["loss"]) == 100 - 10  # -1, 0 and 1e-320 are finite
    assert data.problems == ["metrics.jsonl: 10 values are not finite or damaged, and left out"]


def test_settings_and_fields_of_a_newer_version_are_shown(tmp_path: Path) -> None:
    """An unknown setting, an unknown event, an unknown phase, unknown values in the learning curve."""
    records = [record | {"new": {"x": [1]}} for record in curve()]
    events = [event | {"new": 1} for event in ledger()]
    events[-1]["seconds"]["newphase"] = 3.0
    run = write_run(tmp_path / "a", records, [*events, {"event": "new event", "time": events[-1]["time"], "list": []}])
    with (run / "config.yaml").open("a") as file:
        file.write("newsection:\n  newsetting: 5\n")
    page = run_page(read_run(run, {}))
    assert b"newsetting" in page
    assert read_run(run, {}).problems == []


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    """The curves are shown without it."""
    run = write_run(tmp_path / "a")
    (run / "config.yaml").write_text("a: [1, 2\nb")
    data = read_run(run, {})
    assert data.problems[0].startswith("config.yaml is damaged: ")
    assert b'id="loss"' in run_page(data)


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "config.yaml", "environment.txt"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """A folder of that name stands for a disk that fails."""
    run = write_run(tmp_path / "a")
    (run / name).unlink()
    (run / name).mkdir()
    data = read_run(run, {})
    assert any(name in problem for problem in data.problems)
    assert run_page(data)


@pytest.mark.parametrize("seed", range(8))
def test_no_garbage_in_the_files_of_a_run_prevents_its_report(tmp_path: Path, seed: int) -> None:
    """Random values of every kind in random fields, lines cut anywhere."""
    draw = random.Random(seed)
    share = draw.choice([0.01, 0.1, 0.9])
    run = write_run(tmp_path / "a")
    for name in ("metrics.jsonl", "ledger.jsonl", "logs/rank-times.jsonl"):
        lines = []
        for line in (run / name).read_text().splitlines():
            record = json.loads(line)
            while draw.random() < share:
                field = draw.choice([key for key in record if key != "event"])
                if isinstance(record[field], dict) and record[field]:
                    record[field][draw.choice(list(record[field]))] = copy.deepcopy(draw.choice(GARBAGE))
                else:
                    record[field] = copy.deepcopy(draw.choice(GARBAGE))
            text = json.dumps(record)
            lines.append(text[: draw.randrange(len(text))] if draw.random() < share / 10 else text)
        (run / name).write_text("\n".join(lines))
    data, other = read_run(run, {}), read_run(write_run(tmp_path / "b"), {})
    for page in (run_page(data), runs_page([data, other]), runs_page([other], data)):
        assert not re.search(rb"(left|bottom|width):(nan|inf)", page)


def test_a_sweep_is_reported_in_its_folder_over_one_of_its_runs(tmp_path: Path, report: Report) -> None:
    """All runs in the folder; names with dollar signs, underscores and characters that no font has are drawn."""
    for name in ("_$lr", "seed=1", "\u13a0名", "c"):
        write_run(tmp_path / "sweep" / name)
    done = report(tmp_path / "sweep", "--over", tmp_path / "sweep" / "c")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "sweep" / "report-pictures" / "curves.png").exists()
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert page.count("to the last bit") == 3
    assert 'class="line c0 wide"' in page


@pytest.mark.parametrize("out", ["x.png", "x.svg", "x.pdf"])
def test_only_a_picture_is_written_if_one_is_asked_for(tmp_path: Path, report: Report, out: str) -> None:
    """Of each kind, light or dark; the same bytes each time as SVG."""
    run = write_run(tmp_path / "a")
    contents = []
    for _ in range(2):
        done = report(run, "--out", tmp_path / out, "--dark")
        assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{tmp_path / out}\n")
        contents.append((tmp_path / out).read_bytes())
    assert out != "x.svg" or contents[0] == contents[1]
    assert not (run / "report.html").exists()
