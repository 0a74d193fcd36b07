"""Cluster tests on several versions of Slurm: each result is recorded, and a campaign that was killed goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import CHECKOUT
from tests.slurm_versions import chroots, results
from tests.slurm_versions.chroots import ChrootError, Release

TESTS = """\
import os, pathlib, pytest, signal, time

@pytest.mark.parametrize("number", [1, 2, 3])
def test_of_numbers(number):
    if number == {fatal}:
        while "numbers[2]" not in pathlib.Path("results-22.05.json").read_text():
            time.sleep(0.1)
        os.kill(int(os.environ["MAIN"]), signal.SIGKILL)
    assert number != {bad}

def test_of_nothing(): pytest.skip("nothing there")
"""
RELEASE, OTHER = Release("22.05", "bookworm"), Release("24.11", "trixie")


def run(
    folder: Path, release: Release, *options: str, bad: int = 0, fatal: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs four tests, of which one fails or kills pytest, and records the results."""
    file = folder / "tests" / "test_numbers.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(TESTS.format(bad=bad, fatal=fatal))
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", f"--rootdir={folder}", *options]
    command += ["-p", "tests.slurm_versions.recording", "--commit=1234"]
    command += ["--results", str(results.file_of(folder, release))]
    script = 'export MAIN=$$; cd "$0"; exec "$@"'
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        ["sh", "-c", script, str(folder), *command, "tests/test_numbers.py"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def outcomes(folder: Path) -> dict[str, str]:
    """What is recorded, by the end of the names of the tests."""
    found = results.read(results.file_of(folder, RELEASE))
    return {test.removeprefix("tests/test_numbers.py::test_of_"): result["outcome"] for test, result in found.items()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results of two versions; on the second one a test passed only when it was repeated."""
    folder = tmp_path_factory.mktemp("recorded")
    run(folder, RELEASE, bad=2)
    run(folder, OTHER, bad=2)
    assert "1 passed, 1 skipped, 2 deselected" in run(folder, OTHER, "--rest").stdout
    return folder


def test_the_table_counts_the_last_result_of_each_test_and_names_what_did_not_pass(recorded: Path) -> None:
    """A cell counts the tests that passed of those that ran."""
    columns = [(release, results.read(results.file_of(recorded, release))) for release in (RELEASE, OTHER)]
    assert results.table(columns).splitlines() == [
        "| tests | 22.05 (Debian bookworm) | 24.11 (Debian trixie) |",
        "| --- | ---: | ---: |",
        "| numbers | 2 of 3 | 3 of 3 |",
        "| all | 2 of 3 | 3 of 3 |",
        "22.05: skipped tests/test_numbers.py::test_of_nothing: nothing there",
        "22.05: failed tests/test_numbers.py::test_of_numbers[2]: assert 2 != 2",
        "24.11: skipped tests/test_numbers.py::test_of_nothing: nothing there",
    ]


@pytest.mark.parametrize("processes", [[], ["--numprocesses=1"]], ids=["in one process", "by a worker"])
def test_a_campaign_that_is_killed_goes_on_with_the_tests_that_have_not_passed(
    processes: list[str], tmp_path: Path
) -> None:
    """What passed, and what failed, was recorded as soon as it had ended."""
    done = run(tmp_path, RELEASE, *processes, bad=1, fatal=3)
    assert done.returncode == -signal.SIGKILL
    assert outcomes(tmp_path) == {"numbers[1]": "failed", "numbers[2]": "passed"}
    done = run(tmp_path, RELEASE, *processes, "--rest")
    assert done.returncode == 0 and "numbers[1] " in done.stdout and "numbers[2] " not in done.stdout, done.stdout
    assert outcomes(tmp_path) == {
        "numbers[1]": "passed", "numbers[2]": "passed", "numbers[3]": "passed", "nothing": "skipped"
    }  # fmt: skip


def test_results_of_a_version_that_never_ran_are_empty(tmp_path: Path) -> None:
    """As at the first start."""
    assert results.read(results.file_of(tmp_path, RELEASE)) == {}
    assert results.table([(RELEASE, {})]).splitlines()[-1] == "| all | - |"


def test_a_release_that_cannot_be_had_is_an_error_that_names_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chroot that was built half is not used."""
    if why := chroots.why_not():
        pytest.skip(why)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing can be downloaded
    with pytest.raises(ChrootError, match=r"no chroot of Debian trixie: .*see .*/slurm-24.11.log"):
        chroots.build(OTHER, tmp_path)
    assert not (tmp_path / "slurm-24.11" / chroots.READY).exists()


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    """Before anything is built."""
    command = [sys.executable, "-m", "tests.slurm_versions", "--versions", "21.08"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no release with Slurm 21.08 is known; known: 22.05,23.11,24.11,25.11,26.05" in done.stderr


def test_a_result_names_the_state_of_the_project_that_was_tested(recorded: Path) -> None:
    """Results of several commits may be in one table."""
    found = results.read(results.file_of(recorded, RELEASE))
    assert [result["commit"] for result in found.values()] == ["1234"] * 4
