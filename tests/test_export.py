"""Weights for others: what a run learned, in a file that every framework reads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_config
from safetensors import safe_open
from safetensors.torch import load_file
from test_checkpoint import save

from vit import config, export
from vit.ledger import RunFolder, append
from vit.model import VisionTransformer
from vit.state import State


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with averaged weights and checkpoints of steps 3, 5 and 8, of which step 5 was the best."""
    cfg = small_config(tmp_path)
    cfg = replace(cfg, optim=replace(cfg.optim, ema_decay=0.9))
    folder = RunFolder(tmp_path / "run")
    for step, top1 in ((3, 0.5), (5, 0.7), (6, 0.9), (8, 0.6)):
        state = State.fresh(replace(cfg, seed=step), torch.device("cpu"))
        assert state.average is not None
        state.average.load_state_dict(
            State.fresh(replace(cfg, seed=step + 100), torch.device("cpu")).model.state_dict()
        )
        if step != 6:
            save(folder.checkpoints, step, state.tensors(), {"config": config.to_yaml(cfg)})
        append(folder.metrics, {"step": step, "val_top1": 0.1, "val_top1_average": top1})
    return folder


def of_seed(seed: int, run: RunFolder) -> dict[str, torch.Tensor]:
    return State.fresh(replace(small_config(run.path.parent), seed=seed), torch.device("cpu")).model.state_dict()


@pytest.mark.parametrize(
    ("options", "seed"),
    [
        ([], 108),
        (["--no-average"], 8),
        (["--average", "--which", "best"], 105),
        (["--which", "3", "--no-average"], 3),
    ],
)
def test_the_weights_that_were_asked_for_are_written(
    options: list[str], seed: int, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the model's own names, bit by bit; a fresh model takes them, and the file says what they are."""
    export.main([str(run.path), "--to", str(tmp_path / "out.safetensors"), *options])
    written, expected = load_file(tmp_path / "out.safetensors"), of_seed(seed, run)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    VisionTransformer(small_config(tmp_path).model).load_state_dict(written)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        about = file.metadata()
    assert about["step"] == str(seed % 100)
    assert "width: 16" in about["config"]
    assert f"of step {seed % 100}, 2 blocks of width 16" in capsys.readouterr().out


def test_what_cannot_be_exported_is_said_in_a_line(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step that is not there, an empty run, a damaged checkpoint, no averaged weights; no file is left."""
    out = tmp_path / "out.safetensors"
    plain = {"model.a": torch.ones(2)}
    save(run.path / "plain" / "checkpoints", 1, plain, {"config": "{}"}, parts=1)
    save(run.path / "damaged" / "checkpoints", 1, plain, {"config": "{}"}, parts=1)
    (run.path / "damaged" / "checkpoints" / "step-00000001" / "part-000.bin").write_bytes(bytes(64))
    for folder, options, words in (
        (run.path, ["--which", "4"], "no checkpoint '4'; there are steps 3, 5, 8"),
        (tmp_path / "none", [], "holds no checkpoint"),
        (run.path / "plain", ["--average"], "no averaged weights: the run had optim.ema_decay: 0"),
        (run.path / "plain", ["--which", "best"], "no checkpoint 'best'; there are steps 1"),
        (run.path / "damaged", [], "model.a, 64 bytes at 0, is damaged"),
    ):
        with pytest.raises(SystemExit) as ended:
            export.main([str(folder), "--to", str(out), *options])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert words in said
        assert said.count("\n") == 1
    assert not out.exists()
