"""Resuming with other settings or another data set."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.checkpoints import rewrite_as_format_2
from tests.helpers.interrupted_runs import (
    Fault,
    assert_same_run,
    checkpoints,
    new_run_folder,
    run_attempt,
    short_config,
)
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import read_manifest
from vit.run.folder import RunFolder
from vit.train import Outcome


def test_another_recipe_or_data_set_is_refused(betons: Path, tmp_path: Path) -> None:
    """The message lists the differences; `--override-resume` accepts them, and the ledger records them."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    run_ranks(1, run_attempt, cfg, run, Fault(0, 0, signal.SIGTERM))
    other = replace(cfg, optim=replace(cfg.optim, lr=1e-4), data=replace(cfg.data, train=betons / "val.beton"))
    message = r"(?s)data\.samples: 512 in the run, 100 now.*optim\.lr: 0\.003 .*0\.0001"
    with pytest.raises(ValueError, match=message):
        run_ranks(1, run_attempt, other, run)
    other = replace(other, data=cfg.data)
    assert run_ranks(1, run_attempt, other, run, None, ("optim.lr",)) == [Outcome.FINISHED]
    (event,) = [event for event in RunFolder(run).events() if event["event"] == "settings changed"]
    assert event["settings"] == {"optim.lr": [0.003, 0.0001]}


def test_a_checkpoint_without_a_newer_setting_resumes_with_its_default(
    betons: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """The run ends with the same bits; another value of that setting is refused."""
    run, cfg = new_run_folder(tmp_path / "run"), short_config(betons)
    run_ranks(4, run_attempt, cfg, run, Fault(4, 1, signal.SIGTERM))
    for path in checkpoints(run):
        manifest = read_manifest(path)
        for setting in ("data.interpolation", "augment.randaugment", "augment.randaugment_deviation"):
            del manifest["about"]["recipe"][setting]
        rewrite_as_format_2(path, manifest)
    other = replace(cfg, data=replace(cfg.data, interpolation="bicubic"))
    with pytest.raises(ValueError, match=r"data\.interpolation: bilinear in the run, bicubic now"):
        run_ranks(1, run_attempt, other, run)
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same_run(run, uninterrupted)
