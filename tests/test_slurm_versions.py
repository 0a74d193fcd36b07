"""The table of the cluster tests on several versions of Slurm says what ran, and what failed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import CHECKOUT
from tests.slurm_versions import chroots, results
from tests.slurm_versions.chroots import ChrootError, Release

TESTS = """\
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_of_numbers(number): assert number == {good}

def test_of_nothing(): pytest.skip("nothing there")
"""
RELEASE, OTHER = Release("22.05", "bookworm"), Release("24.11", "trixie")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results of two versions; on the second one a test passed only when it was repeated."""
    tmp_path = tmp_path_factory.mktemp("reports")
    for release, numbers in ((RELEASE, [1]), (OTHER, [1, 2])):
        for good in numbers:
            file = tmp_path / "tests" / "test_numbers.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(TESTS.format(good=good))
            chosen = ["tests/test_numbers.py"] if good == 1 else ["tests/test_numbers.py::test_of_numbers[2]"]
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
            subprocess.run([*command, "--junitxml=report.xml", *chosen], cwd=tmp_path, capture_output=True, check=False)
            results.record(tmp_path, release, tmp_path / "report.xml")
    return tmp_path


def test_the_table_counts_the_last_result_of_each_test_and_names_what_did_not_pass(reports: Path) -> None:
    """A cell counts the tests that passed of those that ran."""
    lines = results.table([(release, results.read(reports, release)) for release in (RELEASE, OTHER)]).splitlines()
    assert lines[0] == "| tests | 22.05 (Debian bookworm) | 24.11 (Debian trixie) |"
    assert lines[2:4] == ["| numbers | 1 of 2 | 2 of 2 |", "| all | 1 of 2 | 2 of 2 |"]
    failed = "22.05: failed tests/test_numbers.py::test_of_numbers[2]: "
    assert [line[: len(failed)] for line in lines[4:] if "failed" in line] == [failed]
    assert [line.partition(": ")[2] for line in lines if "nothing" in line] == [
        "skipped tests/test_numbers.py::test_of_nothing: nothing there"
    ] * 2


def test_the_tests_that_failed_are_run_again_by_name(reports: Path) -> None:
    """The names are those of pytest's command line."""
    assert results.failed(reports, RELEASE) == ["tests/test_numbers.py::test_of_numbers[2]"]
    assert results.failed(reports, OTHER) == []


def test_results_of_a_version_that_never_ran_are_empty(tmp_path: Path) -> None:
    """As at the first start."""
    assert results.read(tmp_path, RELEASE) == {}
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


def test_a_result_names_the_state_of_the_project_that_was_tested(reports: Path) -> None:
    """Results of several commits may be in one table."""
    found = json.loads((reports / "results-22.05.json").read_text())
    assert all(result["commit"] for result in found.values())
