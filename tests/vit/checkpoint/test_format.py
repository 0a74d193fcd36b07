"""Checkpoints: what is loaded is what was saved, whatever happened to the process, the disk or the bytes."""

import errno
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.data_sets import small_config
from vit.checkpoint import format as checkpoint_format
from vit.checkpoint.format import (
    DamagedCheckpointError,
    clean,
    commit,
    differences,
    discard,
    find_checkpoints,
    prune,
    quarantine,
    read_manifest,
    step_of,
    write_part,
)
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.snapshot import Snapshot, lay_out
from vit.checkpoint.train_state import TrainState

ABOUT = {"recipe": {"seed": 1, "data.sha256": "ab"}, "scaler": {}}


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any], parts: int = 2) -> Path:
    """What the writers of `parts` ranks do, one after the other, in this process."""
    layout, digests = lay_out(tensors, parts), []
    for part in range(parts):
        snapshot = Snapshot(layout, part, torch.device("cpu"))
        snapshot.take(tensors)
        assert snapshot.taken(wait=True)
        data = memoryview(snapshot.flat.numpy())[: sum(snapshot.sizes)]
        digests.append(write_part(folder, step, part, data, snapshot.sizes))
        snapshot.close()
    return commit(folder, step, layout, digests, about)


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
    tensors, manifest = load_checkpoint(path)
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


@pytest.mark.parametrize("parts", [1, 2, 4, 40])
def test_what_is_loaded_is_what_was_saved(parts: int, tmp_path: Path) -> None:
    """Every dtype and shape, to the last bit, and what was said about them, however many ranks wrote it."""
    tensors = of_every_kind()
    path = save(tmp_path / "not" / "yet" / "there", 12, tensors, ABOUT, parts)
    loaded, manifest = load_checkpoint(path)
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

    def step(state: TrainState) -> None:
        state.optimizer.zero_grad()
        state.model(images).square().mean().backward()
        state.optimizer.step()

    state, restored = TrainState.fresh(cfg, torch.device("cpu")), TrainState.fresh(cfg, torch.device("cpu"))
    for _ in range(2):
        step(state)
    tensors, manifest = load_checkpoint(save(tmp_path, 2, state.tensors(), state.about()))
    restored.restore(manifest["step"], tensors, manifest["about"])
    assert restored.step == 2
    for _ in range(2):
        ours, theirs = restored.tensors(), state.tensors()
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not same_bits(ours[name], theirs[name])] == []
        step(state)
        step(restored)


def test_each_rank_writes_its_share(tmp_path: Path) -> None:
    """Within a few percent, and no tensor twice: of a ViT-B and its moments on 2, 4 and 8 ranks."""
    sizes = [768 * 768, *[768, 3 * 768 * 768, 768 * 768, 4 * 768 * 768, 4 * 768 * 768] * 12, 1000 * 768]
    tensors = {str(i): torch.empty(size, device="meta") for i, size in enumerate(3 * sizes)}
    for ranks in (2, 4, 8):
        shares = [0] * ranks
        for entry in lay_out(tensors, ranks).values():
            assert entry["offset"] == shares[entry["part"]]
            shares[entry["part"]] += entry["bytes"]
        assert max(shares) < 1.06 * sum(shares) / ranks


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Each single bit of all files, one after the other: never does it load, and the file is named."""
    few = {name: tensor for name, tensor in of_every_kind().items() if name in ("wild", "bytes", "step", "empty")}
    path = save(tmp_path, 3, few, {})
    for name in ("manifest.json", "part-000.bin", "part-001.bin"):
        with (path / name).open("r+b", buffering=0) as file:
            content = file.read()
            for bit in range(8 * len(content)):
                file.seek(bit // 8)
                file.write(bytes([content[bit // 8] ^ 1 << bit % 8]))
                with pytest.raises(DamagedCheckpointError, match=f"^{path}/{name}"):
                    load_checkpoint(path)
                file.seek(bit // 8)
                file.write(content[bit // 8 :][:1])
    load_checkpoint(path)  # all is as it was: the flips were the reason


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    """The file, the tensor and where it lies."""
    path = save(tmp_path, 3, numbered(3), {}, parts=1)
    content = bytearray((path / "part-000.bin").read_bytes())
    content[256 + 8] ^= 1
    message = f"{path}/part-000.bin: model.b, 448 bytes at 256, is damaged"
    with altered(path / "part-000.bin", bytes(content)), pytest.raises(DamagedCheckpointError, match=message):
        load_checkpoint(path)


def test_a_file_of_another_length_is_found(tmp_path: Path) -> None:
    """Cut short anywhere, empty, longer, or gone."""
    path = save(tmp_path, 3, of_every_kind(), {})
    for name in ("manifest.json", "part-000.bin", "part-001.bin"):
        content = (path / name).read_bytes()
        for length in range(0, len(content), 7):
            with altered(path / name, content[:length]), pytest.raises(DamagedCheckpointError, match=name):
                load_checkpoint(path)
        with altered(path / name, content + b"\0"), pytest.raises(DamagedCheckpointError, match=name):
            load_checkpoint(path)
        (path / name).unlink()
        with pytest.raises(DamagedCheckpointError, match=name):
            load_checkpoint(path)
        (path / name).write_bytes(content)
    load_checkpoint(path)


def test_tensors_of_another_checkpoint_are_found(tmp_path: Path) -> None:
    """Each file whole in itself, but of different steps."""
    older, newer = (save(tmp_path, step, numbered(step), {}) for step in (1, 2))
    shutil.copy(older / "part-000.bin", newer / "part-000.bin")
    with pytest.raises(DamagedCheckpointError, match=r"model\.a"):
        load_checkpoint(newer)


@pytest.mark.parametrize("other", ["vit-checkpoint-1", "vit-checkpoint-99"])
def test_another_format_is_refused_and_left_alone(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older or a newer version of this code wrote is not damaged."""
    monkeypatch.setattr(checkpoint_format, "FORMAT", other)
    path = save(tmp_path, 1, numbered(1), {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"{path} has format '{other}'; vit-checkpoint-2 is known"):
        load_checkpoint(path)


def test_a_damaged_checkpoint_never_comes_back(tmp_path: Path) -> None:
    """It is kept under another name, for whoever wants to know, and its own name is free again."""
    path = save(tmp_path, 1000, numbered(1000), {})
    for _ in range(2):
        os.truncate(path / "part-001.bin", 100)
        with pytest.raises(DamagedCheckpointError) as found:
            load_checkpoint(path)
        message = quarantine(path, found.value)
        aside = tmp_path / message.rpartition(" ")[2]
        assert str(path) in message
        assert (aside / "part-000.bin").exists()
        assert find_checkpoints(tmp_path) == []
        assert_is_step(save(tmp_path, 1000, numbered(1000), {}), 1000)


def test_an_existing_checkpoint_is_never_touched(tmp_path: Path) -> None:
    """Saving its step once more leaves it as it is, to the byte and the second."""
    path = save(tmp_path, 5, numbered(5), {})
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    assert save(tmp_path, 5, numbered(6), {"other": 1}) == path
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()} == before


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    """The newest k stay, and the protected ones; damaged ones and foreign files are not ours to remove."""
    for step in (1, 2, 3, 20, 100):
        save(tmp_path, step, numbered(step), {})
    (tmp_path / "step-00000004.damaged-17").mkdir()
    (tmp_path / "notes.txt").touch()
    left = ["notes.txt", "step-00000002", "step-00000004.damaged-17", "step-00000020", "step-00000100"]
    for _ in range(2):
        assert prune(tmp_path, 2, {2, 7, 100}) is None
        assert sorted(path.name for path in tmp_path.iterdir()) == left
    for step in (2, 20, 100):
        assert_is_step(tmp_path / f"step-{step:08d}", step)
    assert prune(tmp_path / "none", 2) is None


def test_nothing_is_removed_for_a_newer_one_that_is_damaged(tmp_path: Path) -> None:
    """It is read back first, set aside, and named; the older ones are what is left of the run."""
    for step in (1, 2, 3, 4):
        save(tmp_path, step, numbered(step), {})
    content = bytearray((tmp_path / "step-00000004" / "part-001.bin").read_bytes())
    content[9] ^= 1
    (tmp_path / "step-00000004" / "part-001.bin").write_bytes(content)
    message = prune(tmp_path, 1)
    assert message is not None
    assert re.search(r"step-00000004/part-001\.bin: model\.b, .* set aside as step-00000004\.damaged", message)
    assert [step_of(path) for path in find_checkpoints(tmp_path)] == [3, 2, 1]


def test_leftovers_of_killed_saves_are_removed(tmp_path: Path) -> None:
    """Half-written parts, and old checkpoints whose removal was cut short."""
    path = save(tmp_path, 5, numbered(5), {})
    (tmp_path / "step-00000101.tmp").mkdir()
    (tmp_path / "step-00000101.tmp" / "part-000.bin").write_bytes(b"half")
    clean(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


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
        there = find_checkpoints(tmp_path)
        for path in there:
            assert_is_step(path, int(path.name[5:]))
        clean(tmp_path)
        step = step_of(there[0])
        assert step in (safe[-1], safe[-1] + 1)
        assert safe[-1] == step or there[1].name == f"step-{safe[-1]:08d}"
    assert halves >= 10, "hardly any kill came in the middle of a save: this test has seen nothing"


def test_a_full_disk_loses_nothing(tiny_disk: Path) -> None:
    """Whether a part or the manifest does not fit: the save raises OSError, and what was there is as it was."""
    older = save(tiny_disk, 1, numbered(1), {})
    many = {f"model.{i}": torch.zeros(1) for i in range(500)}  # 16 kB in each part, and a manifest of 100 kB
    failures = 0
    for free in range(0, 200_000, 10_000):
        ballast = tiny_disk / "ballast"
        ballast.write_bytes(bytes(max(0, os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_bsize - free)))
        try:
            save(tiny_disk, 2 + free, many, {})
        except OSError as error:
            failures += 1
            assert error.errno == errno.ENOSPC  # noqa: PT017
            discard(tiny_disk, 2 + free)
            assert sorted(path.name for path in tiny_disk.iterdir()) == ["ballast", older.name]
            assert_is_step(older, 1)
            ballast.unlink()
        else:
            break
    assert failures >= 5
    assert [path.name for path in find_checkpoints(tiny_disk)] == [f"step-{2 + free:08d}", older.name]
    load_checkpoint(find_checkpoints(tiny_disk)[0])  # once there is room


def test_a_disk_that_is_out_of_order_is_not_damage(tmp_path: Path) -> None:
    """Whoever may not read a checkpoint now may be able to later: it is no reason to set it aside."""
    path = save(tmp_path, 1, numbered(1), {})
    (path / "part-000.bin").unlink()
    os.symlink("part-000.bin", path / "part-000.bin")  # ELOOP, which binds root too
    with pytest.raises(OSError, match="symbolic links"):
        load_checkpoint(path)


def test_a_changed_recipe_is_named(tmp_path: Path) -> None:
    """What differs, is new or is gone, after a way through JSON; nothing that was accepted or is the same."""
    recipe: dict[str, Any] = {
        "optim.lr": 1e-3,
        "augment.mean": [0.485, 0.456],
        "seed": 0,
        "data.sha256": "ab",
        "old": 1,
    }
    saved = read_manifest(save(tmp_path, 1, numbered(1), {"recipe": recipe}))["about"]["recipe"]
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
