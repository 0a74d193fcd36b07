"""The benchmark of a node, as `doctor.py --submit` runs it, on null GPUs: which figures it gives."""

from pathlib import Path

import pytest

from tests.helpers.gpu_runs import ANSWERS, SMALL
from tests.helpers.null_gpu_ranks import NullGpu
from tests.helpers.paths import CONFIGS
from vit.node_benchmark.__main__ import PARTS, main
from vit.run.jsonl import read_lines


@pytest.mark.parametrize(("gpus", "compiled"), [(1, False), (2, True)])
def test_all_parts_are_measured_on_gpus(
    gpus: int, compiled: bool, null_gpu: NullGpu, jpegs: Path, tmp_path: Path
) -> None:
    """One GPU has no sum over ranks; two reach each other.  The saved run is removed."""
    options = ["--config", str(CONFIGS / "vit_b16.yaml"), *SMALL, "--compile", str(compiled).lower()]
    options += ["--data.train", str(jpegs), "--data.val", str(jpegs), "--folder", str(tmp_path / "out")]
    codes = null_gpu.run(main, options, ranks=gpus, answers=ANSWERS, timeout=200)
    parts = {part["part"]: part for part in read_lines(tmp_path / "out" / PARTS)}
    assert codes == gpus * [0], parts.get("error")
    sums = ["sums"] if gpus > 1 else []
    assert list(parts) == ["node", "matrix product", *sums, "decoding", "training", "save"]
    node = parts["node"]
    assert (node["ranks"], node["nodes"], node["peers"]) == (gpus, 1, gpus - 1)
    assert node["device"].startswith("NVIDIA")
    assert node["cuda"] and node["nccl"] and node["memory"] > 2**30
    assert parts["training"]["images_per_second"] > 0
    assert parts["training"]["peak_memory"] > 0
    assert parts["save"]["bytes"] > 0 and "problem" not in parts["save"]
    assert not (tmp_path / "out" / "run").exists()
