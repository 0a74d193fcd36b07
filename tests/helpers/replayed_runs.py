"""Runs that `vit.train` trains on real ranks, to be replayed, and what is in their folders."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import run_ranks
from vit import train
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


def replayed(capsys: pytest.CaptureFixture[str], run: Path, step: int, *options: str) -> dict[str, Any]:
    """What `--json` prints of a step."""
    capsys.readouterr()
    assert replay(run, "--step", str(step), "--json", *options) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
