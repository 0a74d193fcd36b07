"""The commands of an installation (`vit-submit`, …), in an empty folder and without the source."""

import configparser
import os
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.local_runs import settings
from tests.helpers.paths import ROOT
from tests.test_missing_packages import COMMANDS
from vit.run import console
from vit.run.folder import RunFolder

INTERNAL = {"vit.run.hints"}  # started by the Makefile, not by users
SOURCE = ("vit", "jobs", "data_prep", "configs", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# A module that is imported at the start of a command, and during whose import the user presses Ctrl-C.
INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


def environment(**variables: str) -> dict[str, str]:
    """The variables of a shell in which nothing points to the source."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SLURM"))}
    return inherited | variables


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment in which the project is installed from a wheel, and that sees this one's packages."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    for library in source.rglob("*.so"):
        library.unlink()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, env=environment(), check=True)
    shutil.rmtree(source)
    venv.create(folder / "env", symlinks=True)
    (wheel,) = folder.glob("*.whl")
    bin_folder = folder / "env" / "bin"
    install = [*pip, "--python", str(bin_folder / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, env=environment(), check=True)
    (packages,) = folder.glob("env/lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return bin_folder


def run(command: str, cwd: Path, path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a line in a shell in which the environment with `path` is active."""
    variables |= {"PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_command_for_users_is_in_setup_cfg() -> None:
    """A new module that users start needs a line in vit/run/console.py, and one in setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    entries = dict(line.split(" = ") for line in lines if line)
    assert set(console.MODULES.values()) == set(COMMANDS) - INTERNAL
    assert set(entries) == set(console.MODULES)
    for name, function in entries.items():
        assert function == f"vit.run.console:{name.removeprefix('vit-').replace('-', '_')}"
        assert callable(getattr(console, function.partition(":")[2]))


def test_every_command_explains_itself_under_its_own_name(installed: Path, tmp_path: Path) -> None:
    """Also in the examples of its help, and in its errors."""

    def check(name: str) -> None:
        done = run(f"{name} --help", tmp_path, installed)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: {name} ")
        assert "python -m" not in done.stdout

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(check, console.MODULES))
    for name in ("vit-submit", "vit-status"):
        wrong = run(f"{name} --no-such-option", tmp_path, installed)
        assert (wrong.returncode, wrong.stderr.splitlines()[-1].partition(": ")[0]) == (2, name)
    assert not any(tmp_path.iterdir())


def test_a_run_is_trained_and_used_without_the_source(installed: Path, betons: Path, tmp_path: Path) -> None:
    """With a recipe of the package; the commands that are printed on the way work when pasted."""
    done = run(
        f"vit-submit --config configs/demo.yaml --cluster local {' '.join(settings(betons, 2))}", tmp_path, installed
    )
    assert done.returncode == 0, done.stderr
    run_folder = RunFolder(tmp_path / "runs" / "demo")
    assert run_folder.finished()
    assert "command: vit-submit --config configs/demo.yaml " in (run_folder.path / "environment.txt").read_text()
    assert (run_folder.source / "vit" / "train.py").exists()
    report = next(line for line in done.stdout.splitlines() if line.startswith("  report")).split(maxsplit=1)[1]
    assert report == "vit-report runs/demo"
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "photo.png")
    for command, expected in (
        (report, "runs/demo/report.html"),
        ("vit-status", "finished"),
        ("vit-predict runs/demo photo.png --attention maps", "photo.png"),
        ("vit-doctor", "OK    torch  "),
        ("vit-doctor --config configs/demo.yaml --cluster-config nowhere", "configs/clusters has apptainer, generic"),
        ("vit-submit --config configs/demo.yaml --name new", "vit-write-beton "),
    ):
        after = run(command, tmp_path, installed)
        assert expected in after.stdout + after.stderr, command
        assert "Traceback" not in after.stderr


def test_a_package_that_is_missing_in_an_installation_is_one_line(installed: Path, tmp_path: Path) -> None:
    """It names the command, the package, the Python, and how to install it there."""
    (packages,) = installed.parent.glob("lib/python*/site-packages")  # without what others.pth adds
    done = run(f"python -S {installed}/vit-submit --help", tmp_path, installed, PYTHONPATH=str(packages))
    python = installed / "python"
    expected = f"jsonargparse is not installed in {python}; run `{python} -m pip install jsonargparse`"
    assert (done.returncode, done.stderr) == (2, f"vit-submit: {expected}\n")


@pytest.mark.parametrize(
    ("command", "imports", "expected"),
    [("vit-submit", "jsonargparse", "stopped before anything was submitted; "), ("vit-verify", "numpy", "")],
)
def test_ctrl_c_at_the_start_of_a_command_ends_it_without_a_traceback(
    installed: Path, tmp_path: Path, command: str, imports: str, expected: str
) -> None:
    """With the exit code of a shell."""
    (tmp_path / f"{imports}.py").write_text(INTERRUPTED)
    done = run(command, tmp_path, installed, PYTHONPATH=str(tmp_path))
    assert done.returncode == 130
    assert done.stdout.startswith(expected)
    assert done.stderr == ""
