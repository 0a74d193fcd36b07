"""The checkpoint format: what is loaded is what was saved, to the last bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import same_bits, save_checkpoint, tensors_of_every_dtype, tensors_of_step
from tests.helpers.data_sets import small_config
from vit.checkpoint import format as checkpoint_format
from vit.checkpoint.format import DamagedCheckpointError
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.snapshot import make_layout
from vit.checkpoint.train_state import TrainState

METADATA = {"recipe": {"seed": 1, "data.sha256": "ab"}, "scaler": {}}


@pytest.mark.parametrize("parts", [1, 2, 4, 40])
def test_a_checkpoint_round_trips_every_dtype_and_shape(parts: int, tmp_path: Path) -> None:
    """Tensors to the last bit and metadata, for any number of ranks that write them."""
    tensors = tensors_of_every_dtype()
    path = save_checkpoint(tmp_path / "not" / "yet" / "there", 12, tensors, METADATA, parts)
    loaded, manifest = load_checkpoint(path)
    assert path == tmp_path / "not" / "yet" / "there" / "step-00000012"
    assert list(loaded) == list(tensors)
    assert [name for name in tensors if not same_bits(tensors[name], loaded[name])] == []
    assert (manifest["step"], manifest["about"]) == (12, METADATA)


def test_a_train_state_round_trips(tmp_path: Path) -> None:
    """Weights, EMA and optimizer after two steps, restored into a new state; the next step is the same too."""
    cfg = small_config(tmp_path)
    cfg = replace(cfg, optim=replace(cfg.optim, ema_decay=0.9))
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))

    def train_step(state: TrainState) -> None:
        state.optimizer.zero_grad()
        state.model(images).square().mean().backward()
        state.optimizer.step()

    state, restored = TrainState.fresh(cfg, torch.device("cpu")), TrainState.fresh(cfg, torch.device("cpu"))
    for _ in range(2):
        train_step(state)
    tensors, manifest = load_checkpoint(save_checkpoint(tmp_path, 2, state.tensors(), state.metadata()))
    restored.restore(manifest["step"], tensors, manifest["about"])
    assert restored.step == 2
    for _ in range(2):
        found, expected = restored.tensors(), state.tensors()
        assert found.keys() == expected.keys()
        assert [name for name in expected if not same_bits(found[name], expected[name])] == []
        train_step(state)
        train_step(restored)


def test_ranks_write_parts_of_about_the_same_size(tmp_path: Path) -> None:
    """Within 6 percent, for a ViT-B with its moments on 2, 4 and 8 ranks; parts have no gaps or overlaps."""
    sizes = [768 * 768, *[768, 3 * 768 * 768, 768 * 768, 4 * 768 * 768, 4 * 768 * 768] * 12, 1000 * 768]
    tensors = {str(i): torch.empty(size, device="meta") for i, size in enumerate(3 * sizes)}
    for ranks in (2, 4, 8):
        part_sizes = [0] * ranks
        for entry in make_layout(tensors, ranks).values():
            assert entry["offset"] == part_sizes[entry["part"]]
            part_sizes[entry["part"]] += entry["bytes"]
        assert max(part_sizes) < 1.06 * sum(part_sizes) / ranks


@pytest.mark.parametrize("other", ["vit-checkpoint-1", "vit-checkpoint-99"])
def test_a_checkpoint_of_another_format_is_refused(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of an older or newer version is not reported as damaged."""
    monkeypatch.setattr(checkpoint_format, "FORMAT", other)
    path = save_checkpoint(tmp_path, 1, tensors_of_step(1), {})
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=rf"{path} has format '{other}', but this version reads only vit-checkpoint-2 and"
    ):
        load_checkpoint(path)


def test_the_manifest_is_json(tmp_path: Path) -> None:
    """For any program: it says what each part contains."""
    path = save_checkpoint(tmp_path, 12, tensors_of_step(12), METADATA)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["about"]) == (12, METADATA)
    entry = manifest["tensors"]["model.b"]
    content = (path / f"part-{entry['part']:03}.bin").read_bytes()[entry["offset"] :][: entry["bytes"]]
    assert torch.frombuffer(bytearray(content), dtype=torch.int64)[:50].tolist() == list(range(12, 62))


def test_a_checkpoint_of_the_previous_format_is_read(tmp_path: Path) -> None:
    """Bytes as that version wrote them, with the checksum in a line of its own; each changed byte is found."""
    text = (
        b'{\n "format": "vit-checkpoint-2",\n "step": 7,\n "about": {"seed": 1},\n '
        b'"written": "2026-11-01T00:00:00+0000",\n "tensors": {"model.a": {"dtype": "float32", "shape": [2], '
        b'"part": 0, "offset": 0, "bytes": 8, "crc32": 775923062}}\n}'
    )
    path = tmp_path / "step-00000007"
    path.mkdir()
    (path / "part-000.bin").write_bytes(b"\0\0\x80\x3f\0\0\0\x40")
    (path / "manifest.json").write_bytes(b"b054d298\n" + text)
    loaded, manifest = load_checkpoint(path)
    assert loaded["model.a"].tolist() == [1, 2] and (manifest["step"], manifest["about"]) == (7, {"seed": 1})
    content = (path / "manifest.json").read_bytes()
    for i in range(len(content)):
        (path / "manifest.json").write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(DamagedCheckpointError, match=r"manifest\.json is damaged: its checksum does not match"):
            load_checkpoint(path)


def test_saving_a_step_again_leaves_its_checkpoint_untouched(tmp_path: Path) -> None:
    """Contents and modification times stay the same."""
    path = save_checkpoint(tmp_path, 5, tensors_of_step(5), {})
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    assert save_checkpoint(tmp_path, 5, tensors_of_step(6), {"other": 1}) == path
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()} == before
