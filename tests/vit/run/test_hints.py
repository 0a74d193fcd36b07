"""Commands that are printed work when pasted in the shell that printed them."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.helpers.paths import CHECKOUT, ROOT
from vit.run.hints import command, python

PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from vit.run.hints import command
print(command("vit.run.hints", "jobs/status.py"))
print(command("jobs/status.py", "--help"))
"""


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which `python` is a program of another virtual environment, or none."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return environment | {"PATH": os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"])}


@pytest.mark.parametrize("other_python", [False, True])
@pytest.mark.parametrize("here", [True, False])
def test_a_printed_command_works_in_the_shell_that_printed_it(
    here: bool, other_python: bool, shell: dict[str, str], tmp_path: Path
) -> None:
    """Without an active environment, with another one, and in another folder than the project's."""
    if other_python:
        venv.create(tmp_path, symlinks=True)
    cwd = ROOT if here else tmp_path
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=cwd, env=shell, capture_output=True, text=True, check=True
    ).stdout
    module, script = printed.splitlines()
    assert ("PYTHONPATH" in module) is not here
    for line, expected in ((module, "jobs/status.py"), (script, "usage: status.py")):
        pasted = subprocess.run(["sh", "-c", line], cwd=cwd, env=shell, capture_output=True, text=True, check=False)
        assert pasted.returncode == 0, pasted.stderr
        assert expected in pasted.stdout


def test_a_command_is_short_where_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python` in an active environment; else the path of this one, relative if that is shorter."""
    monkeypatch.chdir(CHECKOUT)
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(folder))
    assert command("jobs/report.py", "runs/a") == "python jobs/report.py runs/a"
    assert command("vit.train") == "python -m vit.train"
    monkeypatch.setenv("PATH", "")
    assert python() == min(sys.executable, os.path.relpath(sys.executable), key=len)
    venv.create(tmp_path / ".venv", symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    assert python() == ".venv/bin/python"
    monkeypatch.chdir(tmp_path / ".venv" / "bin")
    assert python() == "./python"
