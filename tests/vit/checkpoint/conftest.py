"""Reference runs that several test files compare interrupted runs with."""

from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import new_run_folder, run_attempt, short_config
from tests.helpers.ranks import run_ranks
from vit.train import Outcome


@pytest.fixture(scope="session")
def uninterrupted(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `short_config` on four ranks without interruption."""
    run = new_run_folder(tmp_path_factory.mktemp("uninterrupted"))
    assert run_ranks(4, run_attempt, short_config(betons), run) == [Outcome.FINISHED] * 4
    return run
