"""`make matrix`, with the packages of this environment in the place of those that uv would install."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_for

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Makes the packages of this environment visible in the new one.
UV = f"""#!/bin/sh
echo "resolving"
if [ -e "$FAIL" ]; then echo "no such version"; exit 1; fi
environment=$(dirname "$(dirname "$4")")
for folder in "$environment"/lib/python*/site-packages; do
  echo "{sysconfig.get_path("purelib")}" > "$folder/packages.pth"
done
"""

# Ends the process that it has started, if it is given the time.
TEST = """
import pathlib, subprocess, time

def test_a():
    what = pathlib.Path("behavior").read_text()
    assert what != "fail"
    if what == "hang":
        with subprocess.Popen(["sleep", "1000"]) as process:
            try:
                time.sleep(1000)
            finally:
                time.sleep(1)
                process.kill()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this one's matrix and one test, which reads what to do from the file `behavior`."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / ".ci", folder / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    script = folder / ".ci" / "matrix.py"
    script.write_text(re.sub(r"NEEDED = \d+e9", "NEEDED = 1e6", script.read_text()))
    (folder / "tests").mkdir()
    (folder / "tests" / "test_a.py").write_text(TEST)
    (folder / "behavior").write_text("pass")
    (folder / ".gitignore").write_text("build/\n")
    subprocess.run(["git", "init", "-q", folder], check=True)
    uv = folder / "build" / "matrix" / "uv" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(UV)
    uv.chmod(0o755)
    version = re.search(r'^UV = "(.*)"', script.read_text(), re.MULTILINE)
    assert version
    (folder / "build" / "matrix" / "uv" / f"ready-{version[1]}").touch()
    (tmp_path / "bin").mkdir()
    for name in ("git", "dirname", "sleep"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "bin" / f"python{PYTHON}").symlink_to(Path(sys.base_prefix) / "bin" / f"python{PYTHON}")
    return folder


def start(project: Path, *words: str, fail: str = "") -> "subprocess.Popen[str]":
    """Starts the script; its output is one text."""
    variables = os.environ | {"PYENV_ROOT": "/nowhere", "FAIL": fail}
    variables["PATH"] = str(project.parent / "bin")  # with one Python
    command = [sys.executable, project / ".ci" / "matrix.py", "--tests", "tests", "--processes", "0", *words]
    return subprocess.Popen(
        command, cwd=project, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(project: Path, *words: str, fail: str = "") -> tuple[int, list[str]]:
    """The exit code, and the lines that are printed."""
    process = start(project, *words, fail=fail)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output.splitlines()


def cells(project: Path) -> list[str]:
    """The cells of the Python that runs the tests."""
    return run(project, "--list", PYTHON)[1]


def test_a_table_shows_each_cell_with_its_versions_and_its_result(project: Path) -> None:
    """And what failed is named below it, with the exit code 1; the environments are removed, the logs stay."""
    cell, *_ = cells(project)
    code, lines = run(project, cell)
    assert code == 0, lines
    assert re.fullmatch(rf"\| {cell} \| {PYTHON}\.\d+ \| [\d.+]+ \|.*\| 1 passed \| \d+ \|", lines[-1])
    (project / "behavior").write_text("fail")
    code, lines = run(project, cell)
    assert code == 1
    assert any(line.startswith("FAILED tests/test_a.py::test_a") for line in lines)
    assert " | 1 failed | " in lines[-2]
    assert lines[-1] == f"make matrix: failed: {cell}; logs: build/matrix"
    assert sorted(path.name for path in (project / "build" / "matrix").iterdir()) == [f"{cell}.log", "uv"]


def test_packages_that_cannot_be_installed_and_a_python_that_is_missing_are_failures(project: Path) -> None:
    """Nothing is claimed that did not run; the other cells run."""
    cell, *_ = cells(project)
    code, lines = run(project, cell, fail=str(project))
    assert code == 1 and "not installed: no such version" in lines[-2]
    python = project.parent / "bin" / f"python{PYTHON}"
    python.unlink()
    python.write_text("#!/bin/sh\necho False\n")  # without headers
    python.chmod(0o755)
    code, lines = run(project, cell)
    assert code == 1 and "not run: python" in lines[-2]


def test_the_oldest_packages_are_those_of_the_constraints(project: Path) -> None:
    """Apart from torch, which is the cell's; the newest have no other constraint."""
    listed = (project / ".ci" / "constraints-oldest.txt").read_text().splitlines()[1:]
    for cell in cells(project)[:2]:
        assert run(project, "--keep", cell)[0] == 0
        _, torch, others = cell.split("-")
        lines = (project / "build" / "matrix" / cell / "constraints.txt").read_text().splitlines()
        rest = [line for line in listed if not re.match("torch(vision)?==", line)]
        assert lines == [f"torch=={torch}.*", *(rest if others == "oldest" else [])]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_matrix_leaves_no_process_and_no_environment(project: Path, number: int) -> None:
    """Ctrl-C, and the end of make."""
    (project / "behavior").write_text("hang")
    cell, *_ = cells(project)
    process = start(project, cell)
    children = psutil.Process(process.pid).children
    wait_for(lambda: any(child.name() == "sleep" for child in children(recursive=True)), "the test")
    started = children(recursive=True)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "make matrix: interrupted; what was downloaded is kept"
    assert not any(child.is_running() for child in started)
    assert not (project / "build" / "matrix" / cell).exists()
