"""JSON Lines files survive kills, concurrent writers and full disks."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.disks import tmpfs_mounted
from tests.helpers.paths import CHECKOUT
from tests.helpers.records import training_record
from vit.config.schema import Config
from vit.run import jsonl
from vit.run.file_lock import lock
from vit.run.folder import RunFolder
from vit.run.jsonl import append, flush, read_lines
from vit.run.metrics import MetricsLog


@pytest.mark.parametrize("truncated", ["{", '{"event": "star', '{"event": "started", "step": 3}'])
def test_a_truncated_line_affects_no_other_line(run: RunFolder, truncated: str) -> None:
    """A kill may truncate the last line: events before it are read, and so are those that the next attempt appends."""
    run.record("started", step=0)
    with run.ledger.open("a") as file:
        file.write(truncated)  # without a line break
    before = run.events()
    assert before[0]["step"] == 0
    run.record("checkpoint", step=5)
    run.record("finished", step=9)
    assert [e["event"] for e in run.events()] == [e["event"] for e in before] + ["checkpoint", "finished"]
    assert run.last("started", "checkpoint") == run.events()[-2]
    assert run.last("failed") is None


def test_lines_of_several_processes_never_mix(run: RunFolder) -> None:
    """Four processes append 200 long lines each at the same time; all lines are complete."""
    program = (
        "import sys; from pathlib import Path; from vit.run.jsonl import append\n"
        "for i in range(200): append(Path(sys.argv[1]), {'writer': int(sys.argv[2]), 'i': i, 'long': 'x' * 5000})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(run.ledger), str(number)], cwd=CHECKOUT)
        for number in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = [json.loads(line) for line in run.ledger.read_text().splitlines()]
    for number in range(4):
        assert [line["i"] for line in lines if line["writer"] == number] == list(range(200))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with tmpfs_mounted(tmp_path, "64k"):
        yield tmp_path


def test_no_line_is_lost_when_the_disk_is_full(tiny_disk: Path) -> None:
    """Lines that could not be written are written with a later one, in order; readers never see a partial line."""
    path = tiny_disk / "ledger.jsonl"
    (tiny_disk / "ballast").write_bytes(bytes(40_000))
    for i in range(100):
        append(path, {"i": i, "long": "x" * 1000}, durable=True)
    assert 5 < len(read_lines(path)) < 30
    (tiny_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(tiny_disk)], check=True)
    append(path, {"i": 100})
    assert [line["i"] for line in read_lines(path)] == list(range(101))
    assert len(path.read_text().splitlines()) == 101


def test_flush_writes_the_lines_that_did_not_fit_before(tiny_disk: Path) -> None:
    """The last lines of a run have no later one to be written with.  While the disk stays full, none is lost either."""
    path = tiny_disk / "ledger.jsonl"
    ballast = tiny_disk / "ballast"
    with suppress(OSError):
        ballast.write_bytes(bytes(100_000))
    append(path, {"event": "finished"}, durable=True)
    flush()
    assert read_lines(path) == []
    ballast.unlink()
    flush()
    flush()
    assert read_lines(path) == [{"event": "finished"}]


def test_lines_of_several_threads_are_all_written(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads append 100 lines each at the same time, while the disk becomes full and is freed.

    Locking a file takes a while, as on a network file system.
    """
    monkeypatch.setattr(jsonl, "lock", lambda fd, operation: (time.sleep(1e-4), lock(fd, operation)))
    path, ballast = tiny_disk / "ledger.jsonl", tiny_disk / "ballast"
    ballast.write_bytes(bytes(56_000))

    def append_many(thread: int) -> None:
        for i in range(100):
            append(path, {"thread": thread, "i": i})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append_many, range(8)))
    assert len(read_lines(path)) < 800
    ballast.unlink()
    flush()
    written = sorted((line["thread"], line["i"]) for line in read_lines(path))
    assert written == [(thread, i) for thread in range(8) for i in range(100)]


@pytest.mark.parametrize("damage", [b"\xff\xfe{}", b'{"event": "x\xe9"}', b"[1]", b"7", b"\0\0\0", b"{}"])
def test_a_damaged_line_does_not_hide_the_others(run: RunFolder, damage: bytes) -> None:
    """In the ledger and in the learning curve, where it is set aside when the run resumes."""
    run.record("started", step=0)
    append(run.metrics, training_record(1))
    for path in (run.ledger, run.metrics):
        path.write_bytes(path.read_bytes() + damage + b"\n")
    run.record("checkpoint", step=2)
    append(run.metrics, training_record(2))
    assert [event["event"] for event in run.events()] == ["started", "checkpoint"]
    MetricsLog(run, Config(), step=2)
    assert read_lines(run.metrics) == [training_record(1), training_record(2)]
    assert damage + b"\n" == (run.path / "metrics.superseded.jsonl").read_bytes()


def test_a_file_that_cannot_be_read_is_not_an_empty_one(run: RunFolder) -> None:
    """The error names the file."""
    for path, read in ((run.ledger, run.events), (run.metrics, lambda: MetricsLog(run, Config(), step=0))):
        path.symlink_to(path.name)  # ELOOP
        with pytest.raises(OSError, match=f"'{path}'"):
            read()
