"""Fixtures for the commands in jobs/."""

from pathlib import Path

import pytest

from tests.helpers.local_runs import settings, submit
from vit.run.folder import RunFolder


@pytest.fixture(scope="session")
def finished(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """An undisturbed run on two ranks, and what submit.py printed.  Tests must not change it."""
    cwd = tmp_path_factory.mktemp("finished")
    done = submit(cwd, "--gpus", "2", *settings(betons))
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(cwd / "runs" / "demo"), done.stdout
