"""`vit.train --find-micro-batch RANKS`: the fastest micro-batch that fits, for each image size."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.paths import CHECKOUT
from vit.config.schema import Config, to_yaml
from vit.config.sections import AugmentConfig
from vit.config.user_error import UserError
from vit.training import micro_batch_search
from vit.training.gpu_memory import step_bytes
from vit.training.micro_batch_search import Trial, find_micro_batch, try_micro_batch

GIB = 2**30
Rates = dict[tuple[int, int], float]  # images per second of each image size and micro-batch; 0: does not fit


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """Without a data set: none is read."""
    return small_config(tmp_path / "none.beton")


def search(monkeypatch: pytest.MonkeyPatch, cfg: Config, rates: Rates, memory: int = 0) -> list[tuple[int, int]]:
    """Searches for 4 ranks; returns the image size and micro-batch of each trial."""
    tried: list[tuple[int, int]] = []

    def call(function: Any, cfg: Config) -> Any:
        if function is not try_micro_batch:
            return "GPU" if memory else "cpu", memory
        assert cfg.global_batch == 16, "what one of 4 ranks does"
        tried.append((cfg.model.image_size, cfg.micro_batch))
        rate = rates.get(tried[-1], 1.0)
        return Trial(rate, 2 * GIB if memory else 0) if rate else None

    monkeypatch.setattr(micro_batch_search, "_in_new_process", call)
    find_micro_batch(cfg, 4)
    return tried


def test_micro_batches_are_tried_from_large_to_small_until_smaller_ones_are_not_faster(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What does not fit is a line of the table, too."""
    rates = {(28, 16): 0.0, (28, 8): 1500.0, (28, 4): 1400.0, (28, 2): 1300.0, (28, 1): 5000.0}
    assert search(monkeypatch, cfg, rates, memory=80 * GIB) == [(28, 16), (28, 8), (28, 4), (28, 2)]
    assert capsys.readouterr().out.splitlines() == [
        "micro-batches for 4 ranks, measured on one: GPU of 80.0 GiB",
        "28 pixels:",
        "    micro-batch       GiB    images/s",
        "             16   does not fit",
        "              8       2.0     1,500.0",
        "              4       2.0     1,400.0",
        "              2       2.0     1,300.0",
        "fastest: --micro_batch 8",
        "The micro-batch is part of the recipe: another one gives other bits. Choose it before a run begins.",
    ]


def test_each_image_size_has_a_micro_batch_of_its_own(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is the rows of `train_sizes`, ready to be pasted."""
    cfg = replace(cfg, train_sizes=((0.25, 14), (0.25, 28), (0.5, 14)))
    search(monkeypatch, cfg, {(14, 16): 9.0, (28, 4): 3.0})
    assert 'fastest: --train_sizes "[[0.25, 14, 16], [0.25, 28, 4], [0.5, 14, 16]]"\n' in capsys.readouterr().out


def test_only_micro_batches_that_a_run_accepts_and_that_may_fit_are_tried(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the estimate excludes by far would only take time; a single image cannot be mixed."""
    cfg = replace(cfg, augment=AugmentConfig(mixup=0.8))
    faster_and_faster = {(28, m): 100.0 - m for m in range(17)}
    assert [m for _, m in search(monkeypatch, cfg, faster_and_faster)] == [16, 8, 4, 2]
    memory = int(step_bytes(cfg, 8, 4)) + 1
    assert [m for _, m in search(monkeypatch, cfg, faster_and_faster, memory)] == [8, 4, 2]


def test_if_nothing_can_be_measured_the_error_says_what_to_do(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """No micro-batch fits; no micro-batch exists for these ranks; several processes were started."""
    with pytest.raises(UserError, match=r"no micro-batch fits .* or --activation_checkpointing true"):
        search(monkeypatch, cfg, {(28, m): 0.0 for m in range(17)})
    with pytest.raises(UserError, match="3 ranks do not divide"):
        find_micro_batch(cfg, 3)
    with pytest.raises(UserError, match="at least 1, not 0"):
        find_micro_batch(cfg, 0)
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="without torchrun, as a single process"):
        find_micro_batch(cfg, 4)


def test_the_command_measures_real_steps_and_leaves_no_run_folder(cfg: Config, tmp_path: Path) -> None:
    """On a CPU, each micro-batch in a process of its own."""
    cfg = replace(cfg, global_batch=4, micro_batch=2, augment=AugmentConfig(mixup=0.8))
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    command = [sys.executable, "-m", "vit.train", "--config", str(tmp_path / "config.yaml"), "--find-micro-batch", "1"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")], cwd=CHECKOUT, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "micro-batches for 1 rank, measured on one: cpu"
    assert [line.split()[:2] for line in lines[3:5]] == [["4", "-"], ["2", "-"]]
    assert lines[5].startswith("fastest: --micro_batch ")
    assert not (tmp_path / "run").exists()
