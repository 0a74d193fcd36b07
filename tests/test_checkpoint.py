"""Checkpoints: what is loaded is what was saved, whatever happened to the process, the disk or the bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_config
from torch import Tensor

from vit import checkpoint
from vit.checkpoint import DamagedError, differences, find, load, newest_whole, prune, read_manifest, save
from vit.state import State

ABOUT = {"recipe": {"seed": 1, "data.sha256": "ab"}, "scaler": {}}


def of_every_kind() -> dict[str, Tensor]:
    """Each dtype and shape that a run may hold."""
    wild = torch.tensor([0.0, -0.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan")])
    return {
        "weights": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        "wild": wild,
        "half": wild.bfloat16(),
        "fp16": wild.half(),
        "double": wild.double(),
        "bytes": torch.arange(3, dtype=torch.uint8),  # what follows is not aligned
        "counts": torch.tensor([[-(2**63)], [2**63 - 1]]),
        "flags": torch.tensor([True, False, True]),
        "step": torch.tensor(7.0),
        "count": torch.tensor(2**40),
        "empty": torch.empty(0),
        "empty, of a shape": torch.empty(3, 0, 2, dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "part": torch.arange(10.0)[3:7],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Also of NaN and -0, which `torch.equal` does not tell apart or takes for different."""
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def numbered(step: int, count: int = 50) -> dict[str, Tensor]:
    """Tensors that tell of their step."""
    return {"model.a": torch.full((count,), float(step)), "model.b": torch.arange(count) + step}


def assert_is_step(path: Path, step: int) -> None:
    tensors, manifest = load(path)
    assert manifest["step"] == step
    assert path.name == f"step-{step:08d}"
    expected = numbered(step, len(tensors["model.a"]))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@contextmanager
def altered(path: Path, content: bytes) -> Iterator[None]:
    """The file with other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    """Every dtype and shape, to the last bit, and what was said about them."""
    tensors = of_every_kind()
    path = save(tmp_path / "not" / "yet" / "there", 12, tensors, ABOUT)
    loaded, manifest = load(path)
    assert path == tmp_path / "not" / "yet" / "there" / "step-00000012"
    assert list(loaded) == list(tensors)
    assert [name for name in tensors if not same_bits(tensors[name], loaded[name])] == []
    assert (manifest["step"], manifest["about"]) == (12, ABOUT)


def test_a_run_s_whole_state_survives(tmp_path: Path) -> None:
    """Weights, averaged weights and optimizer after two steps, restored into a fresh state, and the next step too."""
    cfg = small_config(tmp_path)
    optim = type(cfg.optim)(ema_decay=0.9)
    cfg = type(cfg)(**{**vars(cfg), "optim": optim})
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))

    def step(state: State) -> None:
        state.optimizer.zero_grad()
        state.model(images).square().mean().backward()
        state.optimizer.step()

    state, restored = State.fresh(cfg, torch.device("cpu")), State.fresh(cfg, torch.device("cpu"))
    for _ in range(2):
        step(state)
    tensors, manifest = load(save(tmp_path, 2, state.tensors(), state.about()))
    restored.restore(manifest["step"], tensors, manifest["about"])
    assert restored.step == 2
    for _ in range(2):
        ours, theirs = restored.tensors(), state.tensors()
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not same_bits(ours[name], theirs[name])] == []
        step(state)
        step(restored)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Each single bit of both files, one after the other: never does it load, and the file is named."""
    path = save(tmp_path, 3, of_every_kind(), {})
    for name in ("manifest.json", "tensors.bin"):
        with (path / name).open("r+b", buffering=0) as file:
            content = file.read()
            for bit in range(8 * len(content)):
                file.seek(bit // 8)
                file.write(bytes([content[bit // 8] ^ 1 << bit % 8]))
                with pytest.raises(DamagedError, match=f"^{path}/{name}"):
                    load(path)
                file.seek(bit // 8)
                file.write(content[bit // 8 :][:1])
    load(path)  # all is as it was: the flips were the reason


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    """The file, the tensor and where it lies."""
    path = save(tmp_path, 3, numbered(3), {})
    content = bytearray((path / "tensors.bin").read_bytes())
    content[4 * 50 + 8] ^= 1
    message = f"{path}/tensors.bin: model.b, 400 bytes at 200, is damaged"
    with altered(path / "tensors.bin", bytes(content)), pytest.raises(DamagedError, match=message):
        load(path)


def test_a_file_of_another_length_is_found(tmp_path: Path) -> None:
    """Cut short anywhere, empty, longer, or gone."""
    path = save(tmp_path, 3, of_every_kind(), {})
    for name in ("manifest.json", "tensors.bin"):
        content = (path / name).read_bytes()
        for length in range(0, len(content), 7):
            with altered(path / name, content[:length]), pytest.raises(DamagedError, match=name):
                load(path)
        with altered(path / name, content + b"\0"), pytest.raises(DamagedError, match=name):
            load(path)
        (path / name).unlink()
        with pytest.raises(DamagedError, match=name):
            load(path)
        (path / name).write_bytes(content)
    load(path)


def test_tensors_of_another_checkpoint_are_found(tmp_path: Path) -> None:
    """Each file whole in itself, but of different steps."""
    older, newer = (save(tmp_path, step, numbered(step), {}) for step in (1, 2))
    shutil.copy(older / "tensors.bin", newer / "tensors.bin")
    with pytest.raises(DamagedError, match=r"model\.a"):
        load(newer)


def test_a_later_format_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a newer version of this code wrote is not damaged."""
    monkeypatch.setattr(checkpoint, "FORMAT", "vit-checkpoint-99")
    path = save(tmp_path, 1, numbered(1), {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"{path} has format 'vit-checkpoint-99'; vit-checkpoint-1 is known"):
        newest_whole(tmp_path)
    assert find(tmp_path) == [path]


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    """Damaged ones are set aside and named, and the older one is resumed; never does a damaged one come back."""
    paths = {step: save(tmp_path, step, numbered(step), {}) for step in (9, 10, 100, 1000)}
    assert newest_whole(tmp_path) == (paths[1000], [])
    os.truncate(paths[1000] / "tensors.bin", 100)
    (paths[100] / "manifest.json").write_text("nonsense")
    found, problems = newest_whole(tmp_path)
    assert found == paths[10]
    assert_is_step(paths[10], 10)
    for step, problem in zip((1000, 100), problems, strict=True):
        (aside,) = tmp_path.glob(f"step-{step:08d}.damaged-*")
        assert str(paths[step]) in problem
        assert aside.name in problem
        assert (aside / "tensors.bin").exists()  # kept, for whoever wants to know
    assert newest_whole(tmp_path) == (paths[10], [])
    assert find(tmp_path) == [paths[10], paths[9]]
    assert_is_step(save(tmp_path, 1000, numbered(1000), {}), 1000)  # its name is free again


def test_a_run_with_no_whole_checkpoint_starts_anew(tmp_path: Path) -> None:
    """No folder yet, an empty one, or damaged ones alone: none is found, and each is named."""
    assert newest_whole(tmp_path / "none") == (None, [])
    assert newest_whole(tmp_path) == (None, [])
    (save(tmp_path, 5, numbered(5), {}) / "manifest.json").unlink()
    found, problems = newest_whole(tmp_path)
    assert found is None
    assert len(problems) == 1


def test_an_existing_checkpoint_is_never_touched(tmp_path: Path) -> None:
    """Saving its step once more leaves it as it is, to the byte and the second."""
    path = save(tmp_path, 5, numbered(5), {})
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    assert save(tmp_path, 5, numbered(6), {"other": 1}) == path
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()} == before


def test_old_checkpoints_and_leftovers_are_removed(tmp_path: Path) -> None:
    """The newest k stay; of killed saves nothing; damaged ones and foreign files are not ours to remove."""
    for step in (1, 2, 3, 20, 100):
        save(tmp_path, step, numbered(step), {})
    (tmp_path / "step-00000101.tmp").mkdir()
    (tmp_path / "step-00000101.tmp" / "tensors.bin").write_bytes(b"half")
    (tmp_path / "step-00000004.damaged-17").mkdir()
    (tmp_path / "notes.txt").touch()
    prune(tmp_path, keep=2)
    left = ["notes.txt", "step-00000004.damaged-17", "step-00000020", "step-00000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    for step in (20, 100):
        assert_is_step(tmp_path / f"step-{step:08d}", step)
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_kill_at_any_instant_loses_no_checkpoint(tmp_path: Path) -> None:
    """Sixty SIGKILLs of a process that saves and prunes without pause.

    Whatever has a final name loads, and what a save had returned is still there.
    """
    chosen, count = random.Random(0), 100_000
    step, halves = 0, 0
    for _ in range(60):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    step += 1
                    save(tmp_path, step, numbered(step, count), {})
                    os.write(writer, step.to_bytes(4, "little"))
                    prune(tmp_path, keep=2)
            finally:
                os._exit(1)
        os.close(writer)
        os.read(reader, 4)  # one is safe
        time.sleep(chosen.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "the saving process failed by itself"
        safe = [step + 1] + [int.from_bytes(word, "little") for word in iter(lambda: os.read(reader, 4), b"")]  # noqa: B023
        os.close(reader)
        halves += any(tmp_path.glob("*.tmp"))
        there = find(tmp_path)
        for path in there:
            assert_is_step(path, int(path.name[5:]))
        step = int(there[0].name[5:])
        assert step in (safe[-1], safe[-1] + 1)
        assert safe[-1] == step or there[1].name == f"step-{safe[-1]:08d}"
    assert halves >= 10, "hardly any kill came in the middle of a save: this test has seen nothing"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here, root alone may")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_loses_nothing(tiny_disk: Path) -> None:
    """The save raises OSError and leaves nothing half-made, whether tensors or the manifest do not fit."""
    older = save(tiny_disk, 1, numbered(1), {})
    many = {f"model.{i}": torch.zeros(1) for i in range(1000)}  # a manifest of 100 kB
    failures = {"No space left on device": 0}
    for free in range(0, 200_000, 10_000):
        ballast = tiny_disk / "ballast"
        ballast.write_bytes(bytes(max(0, os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_bsize - free)))
        try:
            save(tiny_disk, 2 + free, many, {})
        except OSError as error:
            failures[error.strerror or ""] += 1
            assert find(tiny_disk) == [older]
            assert sorted(path.name for path in tiny_disk.iterdir()) == ["ballast", older.name]
            assert_is_step(older, 1)
            ballast.unlink()
        else:
            break
    assert failures["No space left on device"] >= 5
    assert [path.name for path in find(tiny_disk)] == [f"step-{2 + free:08d}", older.name]
    load(find(tiny_disk)[0])  # once there is room


def test_a_folder_that_cannot_be_written_is_an_oserror(tiny_disk: Path) -> None:
    """A file system that was remounted read-only, as after a fault; what is there can be resumed."""
    older = save(tiny_disk, 1, numbered(1), {})
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        save(tiny_disk, 2, numbered(2), {})
    assert newest_whole(tiny_disk) == (older, [])


def test_a_folder_without_permission_is_an_oserror(tmp_path: Path) -> None:
    """The same for a user who may not write there."""
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    older = save(tmp_path, 1, numbered(1), {})
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            save(tmp_path, 2, numbered(2), {})
        assert newest_whole(tmp_path) == (older, [])
    finally:
        tmp_path.chmod(0o700)


def test_a_changed_recipe_is_named(tmp_path: Path) -> None:
    """What differs, is new or is gone, after a way through JSON; nothing that was accepted or is the same."""
    recipe: dict[str, Any] = {
        "optim.lr": 1e-3,
        "augment.mean": [0.485, 0.456],
        "seed": 0,
        "data.sha256": "ab",
        "old": 1,
    }
    saved = read_manifest(save(tmp_path, 1, {}, {"recipe": recipe}))["about"]["recipe"]
    assert differences(saved, recipe, []) == []
    current = json.loads(json.dumps(recipe)) | {"optim.lr": 2e-3, "seed": 1, "new": None}
    del current["old"]
    assert differences(saved, current, []) == [
        "new: (absent) in the checkpoint, None now",
        "old: 1 in the checkpoint, (absent) now",
        "optim.lr: 0.001 in the checkpoint, 0.002 now",
        "seed: 0 in the checkpoint, 1 now",
    ]
    assert differences(saved, current, ["optim.lr", "seed", "old"]) == ["new: (absent) in the checkpoint, None now"]
    assert len(differences(saved, current, ["lr", "optim", "see"])) == 4  # whole names alone
