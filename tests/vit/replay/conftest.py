"""A run whose steps are replayed."""

from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import save_each_step, short_config
from tests.helpers.replayed_runs import train_on


@pytest.fixture(scope="session")
def trained(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps on four ranks, with mixup, CutMix, dropout, drop path; its last checkpoints are kept."""
    run = tmp_path_factory.mktemp("replayed") / "my-run"
    train_on(4, run, save_each_step(short_config(betons)))
    return run
