"""Fixtures for the commands in jobs/."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

from tests.helpers.local_runs import settings, submit
from vit.run.folder import RunFolder


@pytest.fixture(scope="session")
def finished(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """An undisturbed run on two ranks, and what submit.py printed.  Tests must not change it."""
    cwd = tmp_path_factory.mktemp("finished")
    done = submit(cwd, "--gpus", "2", *settings(betons))
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(cwd / "runs" / "demo"), done.stdout


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.axes.Axes]:
    """The axes of the figure that `jobs.page.figures.draw` creates."""
    created: list[matplotlib.axes.Axes] = []
    original = pyplot.subplots

    def subplots(*args: object, **options: object) -> object:
        figure, panels = original(*args, **options)
        created.extend(panels)
        return figure, panels

    monkeypatch.setattr(pyplot, "subplots", subplots)
    return created
