"""An ARM (aarch64) system in a folder, and this machine without AVX2: both run under qemu's user emulation.

The system is made of Debian's or Ubuntu's packages of this machine's release, and of wheels.  Nothing of the machine is
changed, and no root is needed.  It is kept in a folder of the user's cache: the next call takes a second.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import CHECKOUT, ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path("~/.cache").expanduser())) / "vit-slurm"
QEMU_ARM, QEMU_X86, COMPILER = "qemu-aarch64-static", "qemu-x86_64-static", "aarch64-linux-gnu-g++"
OLD_X86 = "Nehalem"  # a processor of 2008, with SSE4.2
DEBS = ("python3", "libjpeg-dev", "libstdc++6", "libgomp1")
WHEELS = ("numpy", "pillow")
# torch 2.10 is the last one whose wheel for ARM is without CUDA, and therefore small.
TORCH_WHEELS = ("torch==2.10.0", "torchvision==0.25.0")
TORCH_NEEDS = (
    *("typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "packaging"),
    *("pytest", "pluggy", "iniconfig", "pygments", "pytest-timeout", "psutil", "pyyaml", "jsonargparse", "timm"),
    *("setproctitle", "rich", "markdown-it-py", "mdurl", "safetensors", "tqdm", "matplotlib", "pyparsing", "cycler"),
    *("kiwisolver", "contourpy", "fonttools", "python-dateutil", "six", "submitit", "cloudpickle", "huggingface-hub"),
    *("typeshed-client", "docstring-parser"),
)
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared")  # as in setup.py


class CannotEmulateError(Exception):
    """Why there is no emulated system here."""


def run(*command: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command in the project's folder.  Raises CannotEmulateError with its last line if it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=CHECKOUT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise CannotEmulateError(f"{Path(str(command[0])).name} failed: {lines[-1]}")
    return done


class ArmSystem:
    """Python, numpy and this project's C++ parts for ARM; with `torch`, the tests can run, too."""

    def __init__(self, torch: bool = False) -> None:
        for program in (QEMU_ARM, COMPILER, "apt-get", "dpkg-deb"):
            if not shutil.which(program):
                raise CannotEmulateError(f"needs {program} (Debian's qemu-user-static and g++-aarch64-linux-gnu)")
        self.root = CACHE / "arm64"
        if not (self.root / "done").exists():
            self._unpack_packages()
        self.python = next(iter(sorted((self.root / "usr" / "bin").glob("python3.[0-9]*"))))
        self.version = self.python.name.removeprefix("python3.")
        self.packages = self.root / "usr" / "local" / "lib" / self.python.name / "dist-packages"
        self._install("wheels", WHEELS)
        if torch:
            self._install("torch", TORCH_WHEELS + TORCH_NEEDS)

    def _unpack_packages(self) -> None:
        """Downloads Debian's packages with a package list of its own, and unpacks them."""
        shutil.rmtree(self.root, ignore_errors=True)
        apt = self.root / "apt"
        for name in ("lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True)
        (apt / "status").touch()
        settings = {
            "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
            "Dir::State": apt, "Dir::State::lists": apt / "lists", "Dir::State::status": apt / "status",
            "Dir::Cache": apt / "cache", "Debug::NoLocking": 1,
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        run("apt-get", *options, "-qq", "update")
        run("apt-get", *options, "-qq", "-y", "--no-install-recommends", "--download-only", "install", *DEBS)
        for package in sorted((apt / "cache" / "archives").glob("*.deb")):
            run("dpkg-deb", "-x", package, self.root)
        shutil.rmtree(apt)
        (self.root / "done").touch()

    def _install(self, name: str, wheels: tuple[str, ...]) -> None:
        """Installs wheels of the tested versions, without what they depend on."""
        if (self.root / name).exists():
            return
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("torch")]
        constraints = self.root / "constraints.txt"
        constraints.write_text("\n".join(pins))
        options = ["--no-deps", "--only-binary=:all:", "--python-version", f"3.{self.version}", "--upgrade"]
        options += [word for platform in PLATFORMS for word in ("--platform", platform)]
        run(
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            *options,
            "--target",
            self.packages,
            "-c",
            constraints,
            *wheels,
        )
        (self.root / name).touch()

    def build(self, folder: Path) -> None:
        """Compiles the C++ parts of a copy of the project with setup.py's flags."""
        suffix = f".cpython-3{self.version}-aarch64-linux-gnu.so"
        includes = [f"-I{self.root / 'usr' / 'include'}", f"-I{self.root / 'usr' / 'include' / 'aarch64-linux-gnu'}"]
        sources = [folder / "vit" / "data" / f"{name}.cpp" for name in ("native", "whole_jpeg", "jpeg_library")]
        jpeg = self.root / "usr" / "lib" / "aarch64-linux-gnu" / "libjpeg.so"
        run(COMPILER, *FLAGS, *includes, *sources, "-o", folder / "vit" / "data" / f"_native{suffix}", jpeg)
        source, built = folder / "vit" / "augment" / "pixel_ops.cpp", f"_pixel_ops{suffix}"
        run(COMPILER, *FLAGS, "-fno-trapping-math", source, "-o", source.parent / built)

    def command(self, *arguments: object) -> list[str]:
        """Runs Python on the emulated processor."""
        return [QEMU_ARM, "-L", str(self.root), str(self.python), *map(str, arguments)]


def old_x86_command(*arguments: object) -> list[str]:
    """Runs this Python on an emulated x86 processor without AVX2 and FMA."""
    if not shutil.which(QEMU_X86):
        raise CannotEmulateError(f"needs {QEMU_X86} (Debian's qemu-user-static)")
    return [QEMU_X86, "-cpu", OLD_X86, sys.executable, *map(str, arguments)]


def copy_project(folder: Path) -> Path:
    """The project's source, without what was built for this machine."""
    for name in ("vit", "tests", "data_prep", "jobs", "benchmarks", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.cfg", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder
