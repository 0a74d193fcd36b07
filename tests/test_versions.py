"""The versions that setup.cfg claims are those that `make matrix` tests, and those that are named everywhere else."""

import configparser
import re
import runpy
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.faults.readers import VERSIONS
from jobs.readiness.software import is_within
from tests.helpers.paths import ROOT

CI = ROOT / ".ci"
NAMED = re.compile(r"(3\.\d\d) to (?:Python )?(3\.\d\d)")  # in messages and READMEs


def module(name: str) -> dict[str, Any]:
    """What a file in .ci defines; they are no package."""
    sys.path.insert(0, str(CI))
    try:
        return runpy.run_path(str(CI / f"{name}.py"))
    finally:
        sys.path.remove(str(CI))


BOUNDS, MATRIX = module("bounds"), module("matrix")
SETUP: configparser.ConfigParser = BOUNDS["setup_cfg"]()
REQUIREMENTS: list[tuple[str, str]] = BOUNDS["requirements"](SETUP)
PAIRS: list[tuple[str, str]] = MATRIX["PAIRS"]
FIRST, LAST = (f"3.{minor}" for _, minor in BOUNDS["pythons"](SETUP))
CLAIMED = [f"3.{minor}" for minor in range(int(FIRST[2:]), int(LAST[2:]) + 1)]


def test_every_claimed_python_is_a_cell_of_the_matrix() -> None:
    """And no other Python is."""
    assert sorted({python for python, _ in PAIRS}) == CLAIMED
    lines = SETUP["metadata"]["classifiers"].splitlines()
    assert [line.split(" :: ")[-1] for line in lines if "Python ::" in line] == CLAIMED
    assert {*VERSIONS} <= {*CLAIMED}


def test_the_oldest_and_the_newest_torch_are_cells_of_the_matrix() -> None:
    """The bounds exclude the one before the first and the one after the last."""
    tested = sorted({tuple(map(int, torch.split("."))) for _, torch in PAIRS})
    (first, _), (last, minor) = tested[0], tested[-1]
    assert dict(REQUIREMENTS)["torch"] == f">={first}.{tested[0][1]},<{last}.{minor + 1}"
    assert f"torch {first}.{tested[0][1]} to {last}.{minor}" in (ROOT / "README.md").read_text()
    assert f"torch {first}.{tested[0][1]} to {last}.{minor}" in (ROOT / "tests" / "README.md").read_text()


def test_the_oldest_constraints_are_the_lower_bounds_of_setup_cfg() -> None:
    """`python .ci/bounds.py > .ci/constraints-oldest.txt` after a bound was changed."""
    command = [sys.executable, CI / "bounds.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (CI / "constraints-oldest.txt").read_text() == printed
    pins = dict(line.split("==") for line in printed.splitlines() if not line.startswith("#"))
    assert all(is_within(version, dict(REQUIREMENTS)[name]) for name, version in pins.items())
    unbounded = {name for name, _ in REQUIREMENTS} - {*pins}
    assert all(name.startswith("types-") for name in unbounded), unbounded


def test_the_constraints_of_make_setup_are_within_the_bounds() -> None:
    """With every package that setup.cfg requires."""
    text = (ROOT / "constraints.txt").read_text()
    pins = {name.lower(): version for name, version in re.findall(r"^([\w.-]+)===?(\S+)$", text, re.MULTILINE)}
    for name, bounds in REQUIREMENTS:
        if name != "setuptools":  # what venv brings, or newer
            assert is_within(pins[name.lower()], bounds), name


def test_the_backend_that_builds_the_project_is_as_old_as_the_package() -> None:
    """pyproject.toml must name it, too."""
    bounds = dict(REQUIREMENTS)["setuptools"]
    assert f'requires = ["setuptools{bounds}"]' in (ROOT / "pyproject.toml").read_text()


def test_the_tools_check_the_first_python() -> None:
    """ruff, for what may be written, and mypy."""
    assert SETUP["mypy"]["python_version"] == FIRST
    assert f'target-version = "py{FIRST.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "configs/README.md", "tests/README.md", "Makefile", ".ci/set_up.py", "vit/run/dependencies.py",
        "tests/test_set_up.py", "tests/test_missing_packages.py",
    ],
)  # fmt: skip
def test_files_name_the_pythons_that_are_claimed(name: str) -> None:
    """As `3.11 to 3.13`, which may be on two lines."""
    text = " ".join((ROOT / name).read_text().split())
    found = NAMED.findall(text)
    assert found and set(found) == {(FIRST, LAST)}


def test_make_and_its_set_up_accept_the_pythons_that_are_claimed() -> None:
    """Their conditions."""
    condition = f"(3, {FIRST[2:]}) <= sys.version_info[:2] <= (3, {LAST[2:]})"
    assert condition in (ROOT / "Makefile").read_text()
    assert condition in (CI / "set_up.py").read_text()
    assert f"for p in {' '.join(f'python{python}' for python in CLAIMED)} python3;" in (ROOT / "Makefile").read_text()
    assert f"sys.version_info < (3, {FIRST[2:]})" in (ROOT / "vit/run/dependencies.py").read_text()


def test_the_environment_of_conda_has_the_same_pythons_and_what_the_set_up_asks_for() -> None:
    """Its packages are those that the set-up names where some are missing."""
    content = yaml.safe_load((CI / "environment.yml").read_text())
    assert content["channels"] == ["conda-forge"]
    python, *packages = content["dependencies"]
    assert python == f"python{SETUP['options']['python_requires']}"
    named = re.search(r"conda install -c conda-forge (.*opencv.*)", (CI / "system-packages").read_text())
    assert named and packages == shlex.split(named[1])


@pytest.mark.parametrize("name", MATRIX["PART"])
def test_the_chosen_part_of_the_tests_exists(name: str) -> None:
    """pytest would end with an error in each cell."""
    file, _, function = name.partition("::")
    path = ROOT / file
    assert path.exists() and (not function or f"\ndef {function}(" in path.read_text())


def test_the_table_of_the_readme_has_each_cell_of_the_matrix_once_and_all_passed() -> None:
    """In the order in which they run."""
    text = (ROOT / "tests" / "README.md").read_text()
    rows = re.findall(r"^\| (3\.\d+-\S+) \|.*\| ([^|]+) \| \d+ \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == MATRIX["CELLS"]
    assert all(re.fullmatch(r"\d+ passed", result) for _, result in rows)


def test_a_cell_is_chosen_by_how_its_name_begins_or_ends() -> None:
    """An unknown name is one line that lists the cells."""
    listed = run_matrix("--list", "3.12", "3.11-2.15-oldest").stdout.split()
    assert listed == ["3.11-2.15-oldest", "3.12-2.11-oldest", "3.12-2.11-newest"]
    assert run_matrix("--list").stdout.split() == MATRIX["CELLS"]
    assert all(first != second for first, second in pairwise(sorted(MATRIX["CELLS"])))
    unknown = run_matrix("3.9")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("make matrix: there is no cell 3.9; the cells are 3.11-2.11-oldest, ")
    assert unknown.stderr.count("\n") == 1


def run_matrix(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs the script."""
    command = [sys.executable, CI / "matrix.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)
