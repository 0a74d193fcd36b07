"""A command that is run by a Python without the project's packages says in one line what to do."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.test_structure import MODULES, is_in
from vit.run.dependencies import PACKAGES

# Those that a user starts; others are started by processes of the project.
COMMANDS = sorted(
    module.removesuffix(".__main__")
    for module, path in MODULES.items()
    if (source := path.read_text()).count('if __name__ == "__main__":') and "    run_command(" in source
    if not is_in(module, "jobs.node")
)
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("benchmarks/*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
OLDEST = (3, 6)  # the system's Python on some clusters
EVERYWHERE = {"contextlib", "gc", "os", "pathlib", "signal", "sys", "typing"}  # modules that it has, and that are quick
IMPORTS = {"pyyaml": "yaml", "pillow": "PIL", "opencv-python": "cv2"}  # packages that are imported by another name


def script_of(command: str) -> str:
    """The script that a user starts, if the command is not a module."""
    return command if command.endswith(".py") else f"{command.replace('.', '/')}.py" * command.startswith("jobs.")


def run(root: Path, command: str, *options: str, python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
    """Runs a command, a script or else a module, without the packages that are installed (`-S`)."""
    script = script_of(command)
    return subprocess.run(
        [python, *options, *([script] if script else ["-m", command]), "no-such-argument"],
        cwd=root, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("command", [*COMMANDS, *SCRIPTS])
def test_a_missing_package_is_one_line_and_not_a_traceback(command: str) -> None:
    """It names the package and the Python in which it is missing."""
    done = run(ROOT, command, "-S")
    if "is not installed" not in done.stderr:  # a command that needs none of them before it reads its arguments
        assert "Traceback" not in done.stderr
        return
    name = script_of(command) or command
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: "), done.stderr
    assert f" is not installed in {sys.executable}; run `" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [*sorted({*COMMANDS} - {"vit.run.hints"}), *SCRIPTS])  # that one is for make
def test_an_old_python_can_read_a_command_up_to_the_line_that_explains_it(command: str) -> None:
    """`python3` may be the system's.  The whole file is in its grammar, and it imports nothing that it lacks before."""
    path = ROOT / command if command in SCRIPTS else MODULES.get(f"{command}.__main__", MODULES.get(command))
    assert path
    tree = ast.parse(path.read_text(), feature_version=OLDEST)
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            imports = [line for line in map(ast.unparse, node.body) if "import" in line]
            assert imports[0] in {
                "from vit.run.dependencies import explain_missing_packages",
                "import missing_packages",
            }
            break
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module}
            assert names <= EVERYWHERE
    else:
        pytest.fail("explain_missing_packages is not called")


@pytest.mark.parametrize("command", ["jobs.submit", "vit.train", "data_prep.write_beton", "benchmarks/recovery.py"])
def test_an_old_python_is_named_with_what_to_do(command: str) -> None:
    """The oldest one of this machine."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], 11)]
    runnable = [name for name in names if subprocess.run(["sh", "-c", f"{name} -V"], check=False).returncode == 0]
    if not runnable:
        pytest.skip("there is no Python before 3.11")
    done = run(ROOT, command, python=runnable[0])
    assert done.returncode == 2
    expected = f"{script_of(command) or command}: Python 3.11 to 3.14 is needed, but "
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1, done.stderr


def test_the_commands_are_found() -> None:
    """So that the test above runs them."""
    found = {"jobs.submit", "jobs.status", "vit.train", "vit.augment", "vit.wandb_sender", "data_prep.write_beton"}
    assert found <= set(COMMANDS)
    assert all(is_in(command, "vit", "jobs", "data_prep") for command in COMMANDS)


def test_every_package_of_the_project_is_known() -> None:
    """setuptools is only needed by FFCV."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [line.split("#")[0].strip() for line in setup["options"]["install_requires"].splitlines()]
    names = {line.split(">")[0].split("=")[0] for line in lines if line} - {"setuptools"}
    assert {IMPORTS.get(name, name) for name in names} == set(PACKAGES)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project, without an environment."""
    for name in ("vit", "jobs", "data_prep"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "Makefile").touch()
    return tmp_path


def test_the_line_names_the_environment_that_exists(checkout: Path) -> None:
    """It is to be activated, if `make setup` has made one; in it, `make setup` installs what is missing."""
    assert run(checkout, "jobs.submit", "-S").stderr.endswith(
        "; run `make setup`, and then `source .venv/bin/activate`\n"
    )
    venv.create(checkout / ".venv", symlinks=True)
    assert run(checkout, "jobs.submit", "-S").stderr.endswith("; run `source .venv/bin/activate`, or `make setup`\n")
    inside = run(checkout, "jobs.submit", python=".venv/bin/python")
    assert inside.stderr.endswith(f" is not installed in {checkout}/.venv/bin/python; run `make setup`\n")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vit/config/parser.py", "import vit.no_such_module"),
        ("vit/config/parser.py", "import no_such_package"),
        ("vit/config/parser.py", "raise ImportError('libturbojpeg.so.0: cannot open shared object file')"),
        ("torch.py", "import torch.no_such_module"),
        ("torch.py", "raise ModuleNotFoundError('No module named torch', name='torch')"),
    ],
)
def test_other_errors_keep_their_traceback(checkout: Path, file: str, content: str) -> None:
    """A module of our own that is missing, a library that does not load, a package that is installed but broken."""
    (checkout / file).write_text(content + "\n")
    for name in PACKAGES.keys() - {"torch"}:
        (checkout / f"{name}.py").touch()
    (checkout / "jsonargparse.py").write_text("import torch\n" if file == "torch.py" else "Namespace = object\n")
    done = run(checkout, "vit.train", "-S")
    assert "Traceback" in done.stderr
    assert "is not installed in" not in done.stderr
