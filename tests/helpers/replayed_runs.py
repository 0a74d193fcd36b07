"""Runs that `vit.train` trains on real ranks, to be replayed, and what is in their folders."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.helpers.data_sets import CLASSES, WRITE
from tests.helpers.ranks import run_ranks
from vit import train
from vit.checkpoint.train_state import TrainState
from vit.config.paths import escape
from vit.config.schema import Config, to_yaml
from vit.replay.__main__ import main


def train_on(ranks: int, run: Path, cfg: Config, *options: str) -> None:
    """Runs `python -m vit.train` on so many ranks to its end."""
    config = run.parent / f"{run.name}.yaml"
    config.write_text(to_yaml(cfg))
    run_ranks(ranks, train.main, ["--config", escape(config), "--run-dir", escape(run), *options])


def contents(run: Path) -> dict[str, str]:
    """The digest, size and time of change of each file of a folder."""
    return {
        str(path.relative_to(run)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def replay(run: Path, *options: str) -> int:
    """The exit code of `python -m vit.replay`, in this process."""
    return main([escape(run), "--device", "cpu", *options])


def assert_refused(capsys: pytest.CaptureFixture[str], run: Path, reason: str, *options: str) -> None:
    """With exit code 2, in one line that has the reason."""
    try:
        code = replay(run, *options)
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vit.replay: ") and reason in line


def replayed(capsys: pytest.CaptureFixture[str], run: Path, step: int, *options: str) -> dict[str, Any]:
    """What `--json` prints of a step."""
    capsys.readouterr()
    assert replay(run, "--step", str(step), "--json", *options) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


WHITE = "class-3/white.png"  # the image that overflows, if there is one


def write_gray_images(folder: Path, count: int, white: bool) -> Path:
    """A data set of gray images with a little noise; with `white`, one image of class-3 is all white."""
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class-{i % CLASSES}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.normal(125, 4, (40, 40, 3)).clip(0, 255).astype(np.uint8)).save(path)
    if white:
        Image.new("RGB", (40, 40), "white").save(folder / WHITE)
    arguments = ["imagefolder", str(folder), "--out", str(folder / "train.beton"), "--workers", "1"]
    subprocess.run([sys.executable, "-c", WRITE], input=json.dumps([arguments]), text=True, check=True)
    return folder / "train.beton"


def write_overflowing_weights(path: Path, cfg: Config) -> None:
    """Initial weights with which a patch overflows in fp16 if it is white: the first feature is a sum of its pixels."""
    model = TrainState.fresh(cfg, torch.device("cpu")).model
    with torch.no_grad():
        model.patches.proj.weight[0] = 250.0
    safetensors.torch.save_file(model.state_dict(), path)
