"""Checkpoints with known contents, written without a run."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.checkpoint.format import commit, write_part
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.snapshot import Snapshot, make_layout


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], parts: int = 2
) -> Path:
    """Does in this process, one after the other, what the writers of `parts` ranks do."""
    layout, checksums = make_layout(tensors, parts), []
    for part in range(parts):
        snapshot = Snapshot(layout, part, torch.device("cpu"))
        snapshot.start_copy(tensors)
        assert snapshot.is_copied(wait=True)
        data = memoryview(snapshot.flat.numpy())[: sum(snapshot.sizes)]
        checksums.append(write_part(folder, step, part, data, snapshot.sizes))
        snapshot.close()
    return commit(folder, step, layout, checksums, metadata)


def rewrite_as_format_2(checkpoint: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest of a checkpoint by this one, as versions up to format 2 wrote it."""
    kept = {name: value for name, value in manifest.items() if name != "crc32"}
    text = json.dumps(kept | {"format": "vit-checkpoint-2"}, indent=1).encode()
    (checkpoint / "manifest.json").write_bytes(b"%08x\n%s" % (zlib.crc32(text), text))


def tensors_of_step(step: int, count: int = 50) -> dict[str, Tensor]:
    """Tensors whose values depend on the step."""
    return {"model.a": torch.full((count,), float(step)), "model.b": torch.arange(count) + step}


def assert_holds_step(path: Path, step: int) -> None:
    """Asserts that a checkpoint has the name, the step and the tensors of `tensors_of_step`."""
    tensors, manifest = load_checkpoint(path)
    assert manifest["step"] == step
    assert path.name == f"step-{step:08d}"
    expected = tensors_of_step(step, len(tensors["model.a"]))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def tensors_of_every_dtype() -> dict[str, Tensor]:
    """Every dtype and shape that a checkpoint may contain, and special values."""
    special = torch.tensor([0.0, -0.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan")])
    return {
        "weights": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        "special": special,
        "bfloat16": special.bfloat16(),
        "float16": special.half(),
        "float64": special.double(),
        "bytes": torch.arange(3, dtype=torch.uint8),  # the next tensor is not aligned without padding
        "int64": torch.tensor([[-(2**63)], [2**63 - 1]]),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7.0),
        "scalar int64": torch.tensor(2**40),
        "empty": torch.empty(0),
        "empty with a shape": torch.empty(3, 0, 2, dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "slice": torch.arange(10.0)[3:7],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compares bytes: `torch.equal` treats NaN as different from itself, and -0 as equal to 0."""
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
