"""What a run has learned leaves it whole: other libraries load it and compute the same logits."""

import json
import resource
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import NAMES, finished, saved
from tests.vit.model.test_vision_transformer import pictures, torchvisions
from vit import export
from vit.checkpoint.read_weights import read_weights
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_names import fit_weights
from vit.run.folder import RunFolder
from vit.run.jsonl import append

KINDS = {
    "class token": {},
    "mean": {"pool": "mean"},
    "sines": {"positions": "sincos2d"},
    "mean of sines": {"pool": "mean", "positions": "sincos2d"},
    "layer scale": {"layer_scale": 1e-4},
}


def config(tmp_path: Path, **model: object) -> Config:
    cfg = small_config(tmp_path)
    return replace(cfg, model=replace(cfg.model, **model))


def exported(tmp_path: Path, to: str, **model: object) -> tuple[Path, Tensor]:
    """The path that the command prints, and the logits that are to be found there."""
    state = finished(tmp_path / "run", config(tmp_path, **model))
    path = export.export(tmp_path / "run", to)
    assert path.parent == tmp_path / "run"
    assert state.ema is not None
    with torch.inference_mode():
        logits = state.ema(pictures(3, 28))
        assert not torch.allclose(logits, state.model(pictures(3, 28)), atol=0.1)
    return path, logits


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "scores that say nothing"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["class token", "sines", "layer scale"])
def test_torchvision_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    """Its own VisionTransformer loads the state dict, every name of it; fixed sines become learned positions."""
    path, logits = exported(tmp_path, "torchvision", **KINDS[kind])
    reference = torchvisions(config(tmp_path).model).eval()
    reference.load_state_dict(torch.load(path, weights_only=True), strict=True)
    with torch.inference_mode():
        assert_same(reference(pictures(3, 28)), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_timm_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    """`create_model("local-dir:…", pretrained=True)` and nothing else; it knows how to normalize, and the names."""
    path, logits = exported(tmp_path, "timm", **KINDS[kind])
    reference = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.inference_mode():
        assert_same(reference(pictures(3, 28)), logits)
    data = timm.data.resolve_model_data_config(reference)
    assert (list(data["input_size"]), list(data["mean"]), data["crop_pct"]) == (
        [3, 28, 28],
        [0.485, 0.456, 0.406],
        0.875,
    )
    assert timm.data.create_transform(**data)(Image.new("RGB", (60, 40))).shape == (3, 28, 28)
    assert reference.pretrained_cfg["label_names"] == NAMES


@pytest.mark.parametrize("kind", ["class token", "mean of sines"])
def test_safetensors_hold_all_that_is_to_be_known(kind: str, tmp_path: Path) -> None:
    """The library reads the weights and beside them the model, how to normalize and the names; so does --init_from."""
    path, logits = exported(tmp_path, "safetensors", **KINDS[kind])
    with safetensors.safe_open(path, "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    assert about["classes"] == NAMES
    assert about["model"]["width"] == 16 and about["step"] == 12 and about["std"] == [0.229, 0.224, 0.225]
    model = VisionTransformer(config(tmp_path, **KINDS[kind]).model).eval()
    said = fit_weights(read_weights(path), model)
    assert len(said) == (2 if "sines" in kind else 1)  # fixed positions are left out
    with torch.inference_mode():
        assert_same(model(pictures(3, 28)), logits)


@pytest.mark.parametrize("kind", ["class token", "mean of sines", "layer scale"])
def test_onnxruntime_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    """For any number of images, from a file that the checker finds sound."""
    path, logits = exported(tmp_path, "onnx", **KINDS[kind])
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert json.loads({p.key: p.value for p in model.metadata_props}["classes"]) == NAMES
    session = onnxruntime.InferenceSession(path)
    for count in (1, 3):
        (found,) = session.run(["logits"], {"images": pictures(3, 28).numpy()[:count]})
        assert_same(torch.from_numpy(np.array(found)), logits[:count])


def test_the_command_writes_the_weights_that_were_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The average by default, the last step's on demand, where it was told to; nothing else is left behind."""
    state = finished(tmp_path / "run", config(tmp_path))
    out = tmp_path / "new" / "last.safetensors"
    assert export.main([str(tmp_path / "run"), "--to", "safetensors", "--out", str(out), "--weights", "last"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    found = safetensors.torch.load_file(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.model.state_dict().items())
    assert [path.name for path in out.parent.iterdir()] == ["last.safetensors"]


def test_the_best_checkpoint_or_any_other_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By what validation said of those that are still there; a step that is not is answered with those that are."""
    run, cfg = tmp_path / "run", small_config(tmp_path)
    heads = {}
    for step, top1 in ((3, 0.5), (5, 0.7), (6, 0.9), (8, 0.6)):
        state = TrainState.fresh(replace(cfg, seed=step), torch.device("cpu"))
        heads[step] = state.model.patches.proj.weight
        if step != 6:
            saved(run, replace(state, step=step), cfg)
        append(RunFolder(run).metrics, {"step": step, "val_top1": top1})
    for which, step in (("newest", 8), ("best", 5), ("3", 3)):
        out = tmp_path / f"{which}.safetensors"
        assert export.main([str(run), "--to", "safetensors", "--which", which, "--out", str(out)]) == 0
        assert torch.equal(read_weights(out)["patches.proj.weight"], heads[step])
    capsys.readouterr()
    assert export.main([str(run), "--to", "safetensors", "--which", "4"]) == 2
    assert "run has no checkpoint '4'; there are steps 3, 5, 8\n" in capsys.readouterr().err


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written: no such run, no checkpoint, no average, no class token, a file that is there already."""
    finished(tmp_path / "run", config(tmp_path, pool="mean"), average=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").write_text("mine")
    run = str(tmp_path / "run")
    for args, words in {
        (str(tmp_path / "none"), "--to", "timm"): "none is no run folder: it does not exist",
        (str(tmp_path / "there"), "--to", "timm"): "there is no run folder",
        (str(tmp_path / "empty"), "--to", "timm"): "empty has no whole checkpoint",
        (
            run,
            "--to",
            "timm",
            "--weights",
            "ema",
        ): "keeps no EMA of the weights (optim.ema_decay 0); use --weights last",
        (run, "--to", "torchvision"): "has a class token and this model has none; use --to timm",
        (run, "--to", "onnx", "--out", str(tmp_path / "there")): "there exists already; choose another with --out",
    }.items():
        assert export.main(list(args)) == 2
        out, err = capsys.readouterr()
        assert words in err and err.count("\n") == 1 and err.startswith("vit.export: ") and not out
    assert (tmp_path / "there").read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("to", export.FORMATS)
def test_a_full_disk_leaves_nothing_half_written(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel lets no file grow past 10 kB: one line, and no file that another program could take for whole."""
    finished(tmp_path / "run", config(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        code = export.main([str(tmp_path / "run"), "--to", to, "--out", str(tmp_path / "out" / "file")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("vit.export: ") and err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []
