"""A short fault campaign finds no problems, and the power-cut replay detects a missing fsync."""

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
from benchmarks.faults.crashes import reported_safe
from benchmarks.faults.simulated_disk import SimulatedDisk, write_tree
from vit.checkpoint.format import (
    DamagedCheckpointError,
    find_checkpoints,
    read_manifest,
    read_tensors,
    step_of,
)

needs_layer = pytest.mark.skipif(layer.missing() is not None, reason=str(layer.missing()))

# What a rank's checkpoint writer and ledger do.  Without the imports of a rank it starts in a tenth of a second.
SAVE = """
import os, sys
from pathlib import Path
from benchmarks.faults.layer import Layer
from vit.checkpoint.format import commit, discard, prune, write_part
from vit.run.folder import RunFolder
from vit.run.jsonl import append

def save(run, step):
    data = bytes([step]) * 4096
    append(run.metrics, {"step": step})
    digests = write_part(run.checkpoints, step, 0, memoryview(data), [len(data)])
    layout = {"model.a": {"dtype": "uint8", "shape": [4096], "part": 0, "offset": 0, "bytes": 4096}}
    commit(run.checkpoints, step, layout, [digests], {}, [run.metrics])
    run.record("checkpoint", step=step)
    prune(run.checkpoints, keep=2)

layer, root = Layer(), Path(os.environ["FAULTS_ROOT"])
"""
RECORD = """
run = RunFolder(root / "run")
run.path.mkdir()
if sys.argv[1] == "without fsync":
    os.fsync = lambda fd: None
layer.record()
for step in range(1, 4):
    save(run, step)
"""
FAIL = """
error, first = int(sys.argv[1]), 1
while True:
    run = RunFolder(root / f"run-{first}")
    run.path.mkdir()
    save(run, 1)
    save(run, 2)
    layer.fail(first, first, error)
    try:
        save(run, 3)
    except OSError as raised:
        assert raised.errno == error, raised
    if not layer.stop()[1]:
        break
    discard(run.checkpoints, 3)
    save(run, 4)
    first += 1
"""


def run_with_layer(folder: Path, program: str, *arguments: str) -> Path:
    """Runs a program with the fault-injection layer; returns the folder in which it worked."""
    root = folder / "root"
    root.mkdir()
    environment = {**os.environ, **layer.environment(root, folder / "layer"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SAVE + program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


def intact_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints that can be read, newest first.  Checks that each has the content of its step."""
    out = []
    for path in find_checkpoints(folder):
        try:
            ((_, data),) = read_tensors(path, read_manifest(path))
        except DamagedCheckpointError:
            continue
        assert data == bytes([step_of(path)]) * 4096, path
        out.append(step_of(path))
    return out


def count_losses(folder: Path, mode: str) -> tuple[int, int]:
    """The numbers of states after a power cut during three saves, and of those that lost a safe step (at most ten)."""
    root = run_with_layer(folder, RECORD, mode)
    disk, safe, seen, losses = SimulatedDisk(), 0, set[int](), 0
    for operation in layer.operations(folder / "layer" / "log"):
        disk.apply(operation, str(root / "run"))
        safe = max(safe, reported_safe(operation))
        for tree in disk.after_power_cut(random.Random(0)) if safe else ():
            if (state := hash((safe, *sorted(tree.items())))) not in seen:
                seen.add(state)
                write_tree(folder / "state", tree)
                losses += max(intact_steps(folder / "state" / "checkpoints"), default=0) < safe
                if losses == 10:
                    return len(seen), losses
    assert safe == 3
    return len(seen), losses


@needs_layer
def test_a_power_cut_between_any_two_operations_loses_no_safe_checkpoint(tmp_path: Path) -> None:
    """In all possible states of the disk, the newest checkpoint that was reported as safe or a newer one is intact."""
    states, losses = count_losses(tmp_path, "with fsync")
    assert states > 50
    assert losses == 0


@needs_layer
def test_the_power_cut_replay_detects_a_missing_fsync(tmp_path: Path) -> None:
    """The same saves without fsync lose checkpoints; otherwise the test above would prove nothing."""
    assert count_losses(tmp_path, "without fsync")[1] == 10


@needs_layer
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_call_in_a_save_leaves_the_older_checkpoints_intact(error: int, tmp_path: Path) -> None:
    """Whichever call fails: no damaged checkpoint gets a final name, and the next save succeeds."""
    root = run_with_layer(tmp_path, FAIL, str(error))
    runs = sorted(root.iterdir(), key=lambda path: int(path.name[4:]))
    assert len(runs) > 20
    for run in runs[:-1]:
        steps = [step_of(path) for path in find_checkpoints(run / "checkpoints")]
        assert intact_steps(run / "checkpoints") == steps, run
        assert steps[0] == 4, run
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4], run  # each step once
        events = [json.loads(line)["step"] for line in (run / "ledger.jsonl").read_text().splitlines()]
        assert events in ([1, 2, 3, 4], [1, 2, 4]), run  # a failed save is not reported as safe


def test_killed_runs_end_with_the_same_bits(betons: Path, tmp_path: Path) -> None:
    """Three SIGKILLs of a real run on 4, 1 and 2 ranks, during saves and at other times."""
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--quick", "--only", "kills", "--kills", "3"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["problems"] == 0, done.stdout
    assert (figures["kills"]["kills"], figures["kills"]["runs_compared"]) >= (3, 1)
    assert sum(figures["kills"]["stages"].values()) == figures["kills"]["kills"]
