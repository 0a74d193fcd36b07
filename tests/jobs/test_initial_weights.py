"""submit.py checks initial weights before anything is written or queued, and shows what is done with them."""

import argparse
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from tests.helpers.finished_runs import make_finished_run
from tests.helpers.local_runs import settings, submit
from tests.helpers.models import random_images
from vit import export
from vit.config.parser import load_config
from vit.config.schema import Config
from vit.run.folder import RunFolder

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def demo(**model: object) -> Config:
    """The config of `settings`, with another architecture."""
    cfg = load_config(DEMO, "--model.depth", "1")
    return replace(cfg, model=replace(cfg.model, **model))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that fits the demo, everything that can be exported from it, and weights that do not fit."""
    folder = tmp_path_factory.mktemp("weights")
    make_finished_run(folder / "run", demo())
    for to in ("timm", "safetensors"):
        export.export(folder / "run", to)
    make_finished_run(folder / "deeper", demo(depth=2))
    make_finished_run(folder / "learned", demo(positions="learned"))
    for to in ("timm", "safetensors"):
        export.export(folder / "learned", to)
    reference = timm.create_model(f"local-dir:{folder / 'run' / 'run-timm'}", pretrained=True).state_dict()
    scaled = {f"blocks.0.ls{i}.gamma": torch.ones(len(reference["norm.weight"])) for i in (1, 2)}
    torch.save({"model": reference | scaled, "args": argparse.Namespace(lr=1)}, folder / "scaled.pth")
    torch.save({"model": reference, "args": random_images}, folder / "unsafe.pth")
    extra = {f"decoder_{i}": torch.ones(1) for i in range(9)} | {f"loss.{i}": torch.ones(1) for i in range(9)}
    torch.save({f"net.{n}" if "loss" not in n else n: t for n, t in (reference | extra).items()}, folder / "more.pth")
    torch.save({"model": reference, "loss": torch.nn.CrossEntropyLoss()}, folder / "module.pth")
    return folder


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.pth", "init_from: {path} does not exist; give a run folder or a file of weights; configs/README.md"),
        ("https://example.org/a.pth", "init_from: {path} does not exist; download it first, with curl -LO ADDRESS"),
        ("nothing.safetensors", "init_from: {path} does not exist; give a run folder"),
        ("deeper", "init_from: {path} does not fit the model: set model.depth to 2 (not 1)"),
        ("scaled.pth", "init_from: {path} does not fit the model: set model.layer_scale to its initial value"),
        ("learned", "init_from: {path} does not fit the model: its positions are learned; set model.pos"),
        ("learned/learned.safetensors", "init_from: {path} does not fit the model: its positions are learned; set "),
        ("learned/learned-timm", "init_from: {path} does not fit the model: its positions are learned; set model.pos"),
        ("unsafe.pth", "init_from: {path} contains tests.helpers.models.random_images, which is not loaded because"),
        ("..", "init_from: {path} is not a run folder: it has no checkpoints"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_used_are_refused_at_submission(
    source: str, message: str, sources: Path, betons: Path, tmp_path: Path
) -> None:
    """In one line, as the job would say it hours later; nothing is written."""
    path = str(sources / source) if source != ".." else str(tmp_path)
    refused = submit(tmp_path, *settings(betons), "--model.layer_scale", "0", "--init_from", path)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith(f"submit.py: {message.format(path=path)}")
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "taken", "ignored"),
    [
        ("run", "taken: EMA of the weights of step 12; ", ""),
        ("run/checkpoints/step-00000012", "taken: EMA of the weights of step 12; ", ""),
        ("run/run-timm", "", "; ignored: positions"),
        ("run/run.safetensors", "", "; ignored: positions"),
        ("module.pth", "", "; ignored: positions"),
        ("more.pth", "not part of the model: loss.0, loss.1, loss.2 and 6 more; ", "; ignored: .* and 7 more"),
    ],
)
def test_what_is_done_with_the_weights_is_shown(
    source: str, taken: str, ignored: str, sources: Path, tmp_path: Path
) -> None:
    """Without torch, for each kind of source; a dry run shows it as a comment.  Positions are ignored if fixed."""
    shown = submit(tmp_path, "--init_from", str(sources / source), "--dry-run", "--model.depth", "1")
    assert shown.returncode == 0, shown.stderr
    first = shown.stdout.splitlines()[0]
    assert re.fullmatch(rf"# init_from: {sources / source}: {taken}loaded: [\d,]+ weights{ignored}", first)


def test_a_dry_run_does_not_need_weights_that_do_not_exist_yet(tmp_path: Path) -> None:
    """As with data sets; it says so."""
    missing = submit(tmp_path, "--init_from", "later.pth", "--dry-run")
    assert missing.returncode == 0
    assert missing.stdout.startswith(f"# init_from: {tmp_path}/later.pth does not exist; give a run folder")


def test_a_run_that_never_started_takes_a_corrected_path_and_once_saved_needs_none(
    sources: Path, betons: Path, tmp_path: Path
) -> None:
    """The first file is refused only in the job, by torch.  The ledger has what submit.py has shown of the second."""
    source, run = tmp_path / "source", RunFolder(tmp_path / "runs" / "demo")
    shutil.copytree(sources / "run", source)
    command = [*settings(betons, epochs=1), "--optim.warmup_epochs", "0"]
    failed = submit(tmp_path, *command, "--init_from", str(sources / "module.pth"))
    assert failed.returncode == 1
    assert "module.pth contains torch.nn.modules.loss.CrossEntropyLoss, which is not loaded" in failed.stderr
    done = submit(tmp_path, *command, "--init_from", str(source))
    assert done.returncode == 0, done.stderr
    (event,) = (e for e in run.events() if e["event"] == "initialized")
    assert f"init_from: {source}: {'; '.join(event['weights'])}\n" in done.stdout
    shutil.rmtree(source)
    again = submit(tmp_path, *command, "--init_from", str(source))
    assert again.returncode == 0 and "is complete" in again.stdout
    other = submit(tmp_path, *command, "--init_from", str(sources / "run"))
    assert other.returncode == 2 and "has different settings" in other.stderr
