"""`make setup`, with small wheels in the place of torch and its like."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.disks import tmpfs_mounted
from tests.helpers.fake_index import (
    CUDA_LIBRARY,
    TORCH,
    write_failing_ffcv,
    write_project,
    write_torch,
    write_wheel,
)  # fmt: skip
from tests.helpers.paths import CHECKOUT, ROOT
from tests.helpers.waiting import wait_for

MAKE = shutil.which("make") or "make"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that is not set up, beside a package index (`index`) with the builds for CUDA."""
    write_torch(tmp_path / "index")
    (tmp_path / "project").mkdir()
    write_project(tmp_path / "project")
    return tmp_path / "project"


def environment(project: Path, **variables: str) -> dict[str, str]:
    """The variables of a shell in which pip knows only the small wheels."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "MAKE", "VIRTUAL_ENV"))}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project.parent / "index"), "PIP_CONFIG_FILE": os.devnull}
    return inherited | pip | {"PIP_CACHE_DIR": str(project.parent / "cache")} | variables


def make(project: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs make, without a terminal."""
    return subprocess.run(
        [MAKE, f"PYTHON={sys.executable}", *arguments], cwd=project, env=environment(project, **variables),
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def installed(project: Path) -> dict[str, str]:
    """The packages of the environment, with their versions."""
    infos = (path.name.removesuffix(".dist-info") for path in project.glob(".venv/lib/*/site-packages/*.dist-info"))
    return dict(info.rsplit("-", 1) for info in infos)


def test_set_up_shows_its_steps_and_says_what_to_do_next(project: Path) -> None:
    """In a log without a terminal; a second run takes no time, and says so again."""
    done = make(project, "setup")
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^\[(\d)/4\] +\d+:\d\d  (\w+)", done.stdout, re.MULTILINE)
    assert steps == [("1", "system"), ("2", "environment"), ("3", "packages"), ("4", "check")]
    assert "set-up done in " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: source .venv/bin/activate ")
    assert installed(project)["torch"] == TORCH
    assert len(done.stdout.splitlines()) < 15  # no line per package
    again = make(project, "setup")
    assert again.stdout.startswith("next: source .venv/bin/activate ")
    assert again.stdout.count("\n") == 1


@pytest.mark.parametrize("has_opencv", [False, True])
def test_the_set_up_goes_on_without_ffcv_if_only_that_cannot_be_built(project: Path, has_opencv: bool) -> None:
    """One line says so at the end, and that training does not need it."""
    write_failing_ffcv(project.parent / "index", has_opencv)
    (project / "needs_ffcv").touch()
    done = make(project, "setup")
    assert done.returncode == 0, done.stderr
    why = "building ffcv fails); " if has_opencv else "Could not find required package: opencv.); "
    assert f"FFCV cannot be installed ({why}" in done.stdout
    assert [line[:36] for line in done.stdout.splitlines()].count("WARNING: FFCV is not installed; trai") == 1
    assert installed(project)["torch"] == TORCH and "ffcv" not in installed(project)


def test_the_demo_says_first_what_it_will_do_and_last_what_to_do_next() -> None:
    """`make -n` prints the commands of the Makefile without running them."""
    command, shell = [MAKE, "-n", "--no-print-directory", "-C", str(ROOT), "demo"], environment(ROOT)
    lines = subprocess.run(
        command, cwd=CHECKOUT, env=shell, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "sets up .venv (3 minutes; seconds if it is there), prepares 60,000 real images" in lines[0]
    assert "source .venv/bin/activate" in lines[-1]


def test_cpu_only_builds_are_both_taken_and_nothing_of_cuda(project: Path) -> None:
    """Without TORCH the environment keeps its kind; another TORCH makes a new one."""
    write_torch(project.parent / "index", "+cpu")
    done = make(project, "setup", "TORCH=cpu")
    assert done.returncode == 0, done.stderr
    packages = installed(project)
    assert packages["torch"].endswith("+cpu") and packages["torchvision"].endswith("+cpu")
    assert not any(name.startswith("nvidia") for name in packages)
    (project / "setup.cfg").write_text("# changed\n")
    assert make(project, "setup").returncode == 0
    assert installed(project) == packages
    assert make(project, "setup", "TORCH=cuda").returncode == 0
    assert installed(project)["torch"] == TORCH
    assert CUDA_LIBRARY.replace("-", "_") in installed(project)
    assert "check" not in make(project, "setup", "TORCH=cuda").stdout


@pytest.mark.parametrize("kind", ["none", "torch alone", "other versions"])
def test_cpu_only_builds_that_are_missing_are_named_before_anything_is_installed(project: Path, kind: str) -> None:
    """One line; a working environment stays as it was.  A +cpu torch without such a torchvision cannot be imported."""
    assert make(project, "setup").returncode == 0
    index, before = project.parent / "index", installed(project)
    if kind == "torch alone":
        write_torch(index, "+cpu", vision=False)
    if kind == "other versions":
        write_wheel(index, "torch", "2.13.0+cpu")
        write_wheel(index, "torchvision", "0.28.0+cpu")
    done = make(project, "setup", "TORCH=cpu")
    line = done.stderr.splitlines()[0]
    found = {"none": "neither", "torch alone": "only torch 2.15.0+cpu", "other versions": "only torch 2.13.0+cpu"}
    assert done.returncode == 2
    assert line.startswith("make setup: TORCH=cpu needs torch 2.15.0+cpu and torchvision 0.29.2+cpu, but ")
    assert f"has {found[kind]}" in line and "TORCH_INDEX=URL" in line and "pytorch.org/get-started" in line
    assert installed(project) == before
    assert make(project, "setup").stdout.count("\n") == 1


def test_a_cpu_only_torch_is_never_taken_by_chance(project: Path) -> None:
    """An index or a folder of wheels may have one."""
    write_torch(project.parent / "index", "+cpu", vision=False)
    assert make(project, "setup").returncode == 0
    assert installed(project)["torch"] == TORCH


@pytest.mark.parametrize("killed", ["make", "all", "Ctrl-C"])
def test_a_set_up_that_was_interrupted_is_completed_by_the_same_command(project: Path, killed: str) -> None:
    """Also if a package was being unpacked, and if only make was killed and its children were not."""
    write_torch(project.parent / "index", "+cpu")
    (project / "slow").touch()
    command = ["make", f"PYTHON={sys.executable}", "setup", "TORCH=cpu"]
    log = project.parent / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=project, env=environment(project), stdout=file, stderr=file, start_new_session=True
        )
    wait_for((project / "building").exists, "pip builds the project")
    family = psutil.Process(process.pid).children(recursive=True)
    main = next(member for member in family if ".ci/set_up.py" in member.cmdline())
    if killed == "make":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT if killed == "Ctrl-C" else signal.SIGKILL)
    assert process.wait(30)
    wait_for(lambda: not main.is_running() or main.status() == psutil.STATUS_ZOMBIE, "the end of the set-up")
    if killed == "Ctrl-C":
        assert "interrupted; run the same command again" in log.read_text()
        assert "Traceback" not in log.read_text()
    (packages,) = project.glob(".venv/lib/*/site-packages")
    half = packages / f"torch-{TORCH}+cpu.dist-info"  # pip takes a package with this folder for an installed one
    half.mkdir()
    (half / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {TORCH}+cpu\n")
    (project / "slow").unlink()
    done = make(project, "setup")  # of the same kind, which is remembered
    assert done.returncode == 0, done.stderr
    assert f"torch {TORCH}+cpu and torchvision" in done.stdout
    assert not (project / ".venv" / "unfinished").exists()


def test_a_second_set_up_at_the_same_time_is_refused(project: Path) -> None:
    """They would write the same files."""
    (project / "slow").touch()
    first = subprocess.Popen(
        ["make", f"PYTHON={sys.executable}", "setup"], cwd=project, env=environment(project), stdout=subprocess.DEVNULL
    )
    wait_for((project / "building").exists, "pip builds the project")
    done = make(project, "setup")
    assert "make setup: another set-up of this folder is running" in done.stderr
    (project / "slow").unlink()
    assert first.wait(60) == 0


def test_an_environment_of_the_user_is_completed(project: Path) -> None:
    """A folder `.venv` that another program has made, without pip; its CPU-only torch stays."""
    write_torch(project.parent / "index", "+cpu")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    (project / ".venv" / "notes").touch()
    pip = [sys.executable, "-m", "pip", "--python", project / ".venv" / "bin" / "python", "install", "--no-deps"]
    subprocess.run([*pip, f"torch=={TORCH}+cpu"], env=environment(project), check=True)
    done = make(project, "setup")
    assert done.returncode == 0, done.stderr
    assert (project / ".venv" / "notes").exists()
    assert {installed(project)[name].endswith("+cpu") for name in ("torch", "torchvision")} == {True}


def test_too_little_space_is_one_line(project: Path) -> None:
    """Before anything is downloaded or written."""
    folder = project / ".venv"
    folder.mkdir()
    with tmpfs_mounted(folder, "1m"):
        done = make(project, "setup")
        assert not any(folder.iterdir())
    expected = f"make setup: the disk of {folder} has 0.0 GB free, but up to 0.1 GB are needed there; "
    assert done.stderr.startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TORCH=gpu"], "TORCH is cuda or cpu, not 'gpu'"),
        (["TORCH_INDEX=file:///x"], "TORCH_INDEX is the index of the CPU-only builds; give TORCH=cpu, too"),
        (["PYTHON="], "Python is not installed; 3.11 to 3.14 is needed"),
    ],
)
def test_what_cannot_be_set_up_is_one_line(project: Path, arguments: list[str], message: str) -> None:
    """Wrong arguments, and no Python."""
    done = make(project, "setup", *arguments, PATH="/nowhere" if arguments == ["PYTHON="] else os.environ["PATH"])
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(f"make setup: {message}")


def test_no_network_is_one_line(project: Path) -> None:
    """For the packages, and for the look at what CPU-only builds there are."""
    offline = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_RETRIES": "1", "PIP_INDEX_URL": "http://127.0.0.1:9/"}
    for arguments in ([], ["TORCH=cpu"]):
        done = make(project, "setup", *arguments, **offline)
        assert done.returncode == 2
        assert done.stderr.splitlines()[0].startswith("make setup: the package index cannot be reached; ")


def test_system_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    """With commands that install them, where this user cannot."""
    script = Path(__file__).parents[1] / ".ci" / "system-packages"
    for name in ("sh", "id", "cat", "dirname"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    done = subprocess.run(
        [script], env={"PATH": str(tmp_path), "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "a C++ compiler" in done.stderr and "sudo apt-get install" in done.stderr
    assert "without FFCV     VIT_WITHOUT_FFCV=1 make setup" in done.stderr and "OpenCV's headers" in done.stderr
    variables = {"PATH": str(tmp_path), "PYTHON": sys.executable, "VIT_WITHOUT_FFCV": "1"}
    without = subprocess.run([script], env=variables, capture_output=True, text=True, check=False)
    assert without.returncode == 1 and "opencv" not in without.stderr.lower()
