"""Exported weights: other libraries load them and compute the same logits."""

import json
import os
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
from tests.helpers.finished_runs import NAMES, make_finished_run, save_state
from tests.helpers.models import random_images, torchvision_model
from vit import export
from vit.checkpoint.read_weights import read_weights
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.model.pretrained import load_pretrained
from vit.model.vision_transformer import VisionTransformer
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
    """The path of the exported weights, and the expected logits."""
    state = make_finished_run(tmp_path / "run", config(tmp_path, **model))
    path = export.export(tmp_path / "run", to)
    assert path.parent == tmp_path / "run"
    assert state.ema is not None
    with torch.inference_mode():
        logits = state.ema(random_images(3, 28))
        assert not torch.allclose(logits, state.model(random_images(3, 28)), atol=0.1)
    return path, logits


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "the logits are nearly constant, so that comparing them proves nothing"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["class token", "sines", "layer scale"])
def test_torchvision_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    """torchvision's VisionTransformer loads the state dict strictly; fixed positions become learned ones."""
    path, logits = exported(tmp_path, "torchvision", **KINDS[kind])
    reference = torchvision_model(config(tmp_path).model).eval()
    reference.load_state_dict(torch.load(path, weights_only=True), strict=True)
    with torch.inference_mode():
        assert_same(reference(random_images(3, 28)), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_timm_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    """With only `create_model("local-dir:…", pretrained=True)`; normalization and class names are included."""
    path, logits = exported(tmp_path, "timm", **KINDS[kind])
    reference = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.inference_mode():
        assert_same(reference(random_images(3, 28)), logits)
    data = timm.data.resolve_model_data_config(reference)
    assert (list(data["input_size"]), list(data["mean"]), data["crop_pct"]) == (
        [3, 28, 28],
        [0.485, 0.456, 0.406],
        0.875,
    )
    assert timm.data.create_transform(**data)(Image.new("RGB", (60, 40))).shape == (3, 28, 28)
    assert reference.pretrained_cfg["label_names"] == NAMES


@pytest.mark.parametrize("kind", ["class token", "mean of sines"])
def test_safetensors_files_contain_weights_and_metadata(kind: str, tmp_path: Path) -> None:
    """The metadata holds the model config, the normalization and the class names; `--init_from` can read the file."""
    path, logits = exported(tmp_path, "safetensors", **KINDS[kind])
    with safetensors.safe_open(path, "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    assert about["classes"] == NAMES
    assert about["model"]["width"] == 16 and about["step"] == 12 and about["std"] == [0.229, 0.224, 0.225]
    model = VisionTransformer(config(tmp_path, **KINDS[kind]).model).eval()
    report = load_pretrained(read_weights(path)[0], model)
    assert len(report) == (2 if "sines" in kind else 1)  # a second line reports that fixed positions are ignored
    with torch.inference_mode():
        assert_same(model(random_images(3, 28)), logits)


@pytest.mark.parametrize("kind", ["class token", "mean of sines", "layer scale"])
def test_onnxruntime_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    """For any batch size, from a file that passes onnx's checker."""
    path, logits = exported(tmp_path, "onnx", **KINDS[kind])
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert json.loads({p.key: p.value for p in model.metadata_props}["classes"]) == NAMES
    session = onnxruntime.InferenceSession(path)
    for count in (1, 3):
        (found,) = session.run(["logits"], {"images": random_images(3, 28).numpy()[:count]})
        assert_same(torch.from_numpy(np.array(found)), logits[:count])


@pytest.mark.parametrize("to", export.FORMATS)
def test_the_same_run_is_exported_to_the_same_bytes(to: str, tmp_path: Path) -> None:
    """Whatever the output is called, so that files can be compared and cached by their digest."""
    make_finished_run(tmp_path / "run", config(tmp_path))
    copies = []
    for i in range(4):
        out = export.export(tmp_path / "run", to, tmp_path / f"copy-{i}")
        copies.append([p.read_bytes() for p in (sorted(out.iterdir()) if out.is_dir() else [out])])
    assert copies.count(copies[0]) == 4


def test_the_command_exports_the_ema_or_the_last_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The EMA by default, the last weights with `--weights last`; `--out` sets the path, and no other file is left."""
    state = make_finished_run(tmp_path / "run", config(tmp_path))
    out = tmp_path / "new" / "last.safetensors"
    assert export.main([str(tmp_path / "run"), "--to", "safetensors", "--out", str(out), "--weights", "last"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    found = safetensors.torch.load_file(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.model.state_dict().items())
    assert [path.name for path in out.parent.iterdir()] == ["last.safetensors"]


def test_the_best_checkpoint_or_any_other_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`best` is by validation accuracy, of those that still exist; the error for a missing step lists the others."""
    run, cfg = tmp_path / "run", small_config(tmp_path)
    heads = {}
    for step, top1 in ((3, 0.5), (5, 0.7), (6, 0.9), (8, 0.6)):
        state = TrainState.fresh(replace(cfg, seed=step), torch.device("cpu"))
        heads[step] = state.model.patches.proj.weight
        if step != 6:
            save_state(run, replace(state, step=step), cfg)
        append(RunFolder(run).metrics, {"step": step, "val_top1": top1})
    for which, step in (("newest", 8), ("best", 5), ("3", 3)):
        out = tmp_path / f"{which}.safetensors"
        assert export.main([str(run), "--to", "safetensors", "--which", which, "--out", str(out)]) == 0
        assert torch.equal(read_weights(out)[0]["patches.proj.weight"], heads[step])
    capsys.readouterr()
    assert export.main([str(run), "--to", "safetensors", "--which", "4"]) == 2
    assert "run has no checkpoint '4'; available steps: 3, 5, 8\n" in capsys.readouterr().err


def test_errors_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written: no such run, no checkpoint, no EMA, no class token, an existing output file."""
    make_finished_run(tmp_path / "run", config(tmp_path, pool="mean"), with_ema=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").write_text("mine")
    run = str(tmp_path / "run")
    for args, words in {
        (str(tmp_path / "none"), "--to", "timm"): "none is not a run folder: it does not exist",
        (str(tmp_path / "there"), "--to", "timm"): "there is not a run folder",
        (str(tmp_path / "empty"), "--to", "timm"): "empty is not a run folder: it has no checkpoints",
        (
            run,
            "--to",
            "timm",
            "--weights",
            "ema",
        ): "has no EMA of the weights (optim.ema_decay is 0); use --weights last",
        (run, "--to", "torchvision"): "needs a class token, but this model has none; use --to timm",
        (run, "--to", "onnx", "--out", str(tmp_path / "there")): "there already exists; choose another path with --out",
    }.items():
        assert export.main(list(args)) == 2
        out, err = capsys.readouterr()
        assert words in err and err.count("\n") == 1 and err.startswith("vit.export: ") and not out
    assert (tmp_path / "there").read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("to", export.FORMATS)
def test_a_full_disk_leaves_no_partial_file(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file size limit of 10 kB simulates it: one line on stderr, exit code 2, and no output file."""
    make_finished_run(tmp_path / "run", config(tmp_path))
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


@pytest.mark.parametrize("to", export.FORMATS)
def test_exports_have_the_mode_of_other_files(to: str, tmp_path: Path) -> None:
    """Others may read them as the user's umask says."""
    make_finished_run(tmp_path / "run", config(tmp_path))
    before = os.umask(0o027)
    try:
        out = export.export(tmp_path / "run", to)
    finally:
        os.umask(before)
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}
