"""A run folder for the tests of this folder."""

from pathlib import Path

import pytest

from vit.run.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "my-run").mkdir()
    return RunFolder(tmp_path / "my-run")
