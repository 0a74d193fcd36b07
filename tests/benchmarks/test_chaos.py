"""The fault campaign in its short form; and that it finds what is planted, or its zeros would say nothing."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.faults import layer
from benchmarks.faults.crashes import Disk, build, told_safe
from vit.checkpoint.format import (
    DamagedCheckpointError,
    find_checkpoints,
    read_manifest,
    read_tensors,
    step_of,
)

needs_the_layer = pytest.mark.skipif(layer.missing() is not None, reason=str(layer.missing()))

# What a rank's writer and its ledger do, without the rank: it starts in a tenth of a second.
SAVES = """
import os, sys
from pathlib import Path
from benchmarks.faults.layer import Layer
from vit.checkpoint import format as checkpoint
from vit.run.folder import RunFolder, append

def save(run, step):
    data = bytes([step]) * 4096
    append(run.metrics, {"step": step})
    digests = checkpoint.write_part(run.checkpoints, step, 0, memoryview(data), [len(data)])
    layout = {"model.a": {"dtype": "uint8", "shape": [4096], "part": 0, "offset": 0, "bytes": 4096}}
    checkpoint.commit(run.checkpoints, step, layout, [digests], {}, [run.metrics])
    run.record("checkpoint", step=step)
    checkpoint.prune(run.checkpoints, keep=2)

layer, root = Layer(), Path(os.environ["FAULTS_ROOT"])
"""
RECORDS = """
run = RunFolder(root / "run")
run.path.mkdir()
if sys.argv[1] == "planted":
    os.fsync = lambda fd: None
layer.record()
for step in range(1, 4):
    save(run, step)
"""
FAILS = """
error, first = int(sys.argv[1]), 1
while True:
    run = RunFolder(root / f"run-{first}")
    run.path.mkdir()
    save(run, 1)
    save(run, 2)
    layer.fail(first, first, error)
    try:
        save(run, 3)
    except OSError as found:
        assert found.errno == error, found
    if not layer.stop()[1]:
        break
    checkpoint.discard(run.checkpoints, 3)
    save(run, 4)
    first += 1
"""


def under_the_layer(folder: Path, program: str, *arguments: str) -> Path:
    """Runs one of the programs, and returns the folder that it worked in."""
    root = folder / "root"
    root.mkdir()
    environment = {**os.environ, **layer.environment(root, folder / "layer"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SAVES + program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


def whole(folder: Path) -> list[int]:
    """The steps of the checkpoints that read back, newest first; each holds what was saved of its step."""
    out = []
    for path in find_checkpoints(folder):
        try:
            ((_, data),) = read_tensors(path, read_manifest(path))
        except DamagedCheckpointError:
            continue
        assert data == bytes([step_of(path)]) * 4096, path
        out.append(step_of(path))
    return out


def lost(folder: Path, plant: str) -> tuple[int, int]:
    """States that a power cut may leave of three saves, and those in which a safe step is gone; ten of these do."""
    root = under_the_layer(folder, RECORDS, plant)
    disk, safe, seen, gone = Disk(), 0, set[int](), 0
    for operation in layer.operations(folder / "layer" / "log"):
        disk.do(operation, str(root / "run"))
        safe = max(safe, told_safe(operation))
        for tree in disk.after_a_cut(random.Random(0)) if safe else ():
            if (state := hash((safe, *sorted(tree.items())))) not in seen:
                seen.add(state)
                build(folder / "state", tree)
                gone += max(whole(folder / "state" / "checkpoints"), default=0) < safe
                if gone == 10:
                    return len(seen), gone
    assert safe == 3
    return len(seen), gone


@needs_the_layer
def test_a_power_cut_between_any_two_operations_loses_no_safe_checkpoint(tmp_path: Path) -> None:
    """In all states that the disk may be left in, the newest that was called safe, or a newer one, reads back."""
    states, gone = lost(tmp_path, "as it is")
    assert states > 50
    assert gone == 0


@needs_the_layer
def test_a_power_cut_shows_what_was_not_synced(tmp_path: Path) -> None:
    """The same saves without fsync: were they found to be safe too, the replay would see nothing."""
    assert lost(tmp_path, "planted")[1] == 10


@needs_the_layer
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_whichever_call_of_a_save_fails_the_one_before_stays(error: int, tmp_path: Path) -> None:
    """Each in turn: nothing damaged has a final name, and the next save is written."""
    root = under_the_layer(tmp_path, FAILS, str(error))
    runs = sorted(root.iterdir(), key=lambda path: int(path.name[4:]))
    assert len(runs) > 20
    for run in runs[:-1]:
        steps = [step_of(path) for path in find_checkpoints(run / "checkpoints")]
        assert whole(run / "checkpoints") == steps, run  # damaged ones have no such name
        assert steps[0] == 4, run
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4], run  # each once
        events = [json.loads(line)["step"] for line in (run / "ledger.jsonl").read_text().splitlines()]
        assert events in ([1, 2, 3, 4], [1, 2, 4]), run  # of a save that failed there is no word


def test_killed_runs_end_with_the_same_bits(betons: Path, tmp_path: Path) -> None:
    """The command's short form: eight SIGKILLs of a real run on 4, 1 and 2 ranks, in and out of saves."""
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--quick", "--only", "kills", "--kills", "8"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["problems"] == 0, done.stdout
    assert (figures["kills"]["kills"], figures["kills"]["runs_compared"]) >= (8, 1)
    assert sum(figures["kills"]["stages"].values()) == figures["kills"]["kills"]
