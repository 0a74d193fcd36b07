"""A plugin of pytest that records each test as soon as it has ended, so that a campaign that is killed can go on.

pytest -p tests.slurm_versions.recording --results FILE [--commit NAME] [--rest]
"""

from pathlib import Path

import pytest

from tests.slurm_versions import results


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of this plugin."""
    group = parser.getgroup("results")
    group.addoption("--results", type=Path, required=True, help="file of the last result of each test")
    group.addoption("--commit", default="", help="what is tested")
    group.addoption("--rest", action="store_true", help="only tests that have not passed yet")


def pytest_configure(config: pytest.Config) -> None:
    """Only the main process records; the workers of pytest-xdist report to it."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("--results"), config.getoption("--commit")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what has passed, if that is asked for."""
    if config.getoption("--rest"):
        found = results.read(config.getoption("--results"))
        passed = [item for item in items if found.get(item.nodeid, {}).get("outcome") == "passed"]
        config.hook.pytest_deselected(items=passed)
        items[:] = [item for item in items if item not in passed]


class Recorder:
    """Joins what a test's setup, call and teardown report to one result."""

    def __init__(self, file: Path, commit: str) -> None:
        self.file, self.commit = file, commit
        self.running: dict[str, results.Result] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After each of the three; also if a worker has died, with which the test failed."""
        result = self.running.setdefault(
            report.nodeid, {"outcome": "passed", "reason": "", "seconds": "0", "commit": self.commit}
        )
        result["seconds"] = f"{float(result['seconds']) + report.duration:.1f}"
        if report.outcome != "passed" and result["outcome"] != "failed":
            result |= {"outcome": report.outcome, "reason": _reason(report)}
        if report.when not in ("setup", "call"):
            results.record(self.file, report.nodeid, self.running.pop(report.nodeid))


def _reason(report: pytest.TestReport) -> str:
    """The message of the exception, or of skip()."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash is not None else str(report.longrepr)
