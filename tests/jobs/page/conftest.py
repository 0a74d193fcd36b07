"""A browser, and the command that writes reports."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.browser import CHROMIUM, Browser
from tests.helpers.paths import ROOT

Report = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium, for all tests of a module."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed; .ci/system-packages chromium installs it")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def report() -> Report:
    """Runs `jobs/report.py` with these arguments."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / "report.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run
