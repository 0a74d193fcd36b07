"""A small project with this one's set-up, and wheels of a few kB in the place of torch and its like."""

import base64
import hashlib
import io
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

from tests.helpers.paths import ROOT

TORCH, TORCHVISION = "2.15.0", "0.29.2"
CUDA_LIBRARY = "nvidia-cublas"  # what torch with CUDA requires
# Builds the editable project without any package.  While the file `slow` is there, it takes long.
BACKEND = """
import os, pathlib, sys, time
sys.path.insert(0, {tests!r})
from tests.helpers.fake_index import write_wheel
def build_editable(folder, config_settings=None, metadata_directory=None):
    pathlib.Path("building").touch()
    while pathlib.Path("slow").exists():
        time.sleep(0.05)
    ffcv = ["ffcv"] * (pathlib.Path("needs_ffcv").exists() and "VIT_WITHOUT_FFCV" not in os.environ)
    return write_wheel(pathlib.Path(folder), "project", "1", ["torch>=2.11,<2.16", "torchvision", *ffcv]).name
"""
# Of a source package whose build fails as FFCV's does without OpenCV's headers, or with another compiler.
FAILING_BACKEND = """
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    raise RuntimeError("Could not find required package: opencv.")
def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise SystemExit(1)
"""


def write_wheel(folder: Path, name: str, version: str, requires: list[str] | None = None, code: str = "") -> Path:
    """Writes a wheel with one module."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: dev\n"]
    metadata += [f"Requires-Dist: {line}\n" for line in requires or ()]
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n{code}",
        f"{info}/METADATA": "".join(metadata),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def write_torch(folder: Path, local: str = "", vision: bool = True) -> None:
    """Writes the wheels of torch and torchvision, as `+cpu` or not; those of two kinds do not work together."""
    folder.mkdir(exist_ok=True)
    write_wheel(folder, "torch", TORCH + local, [] if local else [CUDA_LIBRARY])
    if not local:
        write_wheel(folder, CUDA_LIBRARY, "13.4")
    if vision:
        check = f"import torch\nassert ('+cpu' in torch.__version__) == {bool(local)}, 'operator nms does not exist'\n"
        write_wheel(folder, "torchvision", TORCHVISION + local, [f"torch=={TORCH}"], check)


def write_failing_ffcv(folder: Path, has_opencv: bool) -> None:
    """Writes FFCV's source package, which cannot be built: without OpenCV, or by the compiler."""
    backend = FAILING_BACKEND
    if has_opencv:  # pip asks `build_wheel` for the metadata
        backend = backend.replace("def prepare_metadata", "def no_metadata")
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "pyproject.toml": build,
        "backend.py": backend,
        "PKG-INFO": "Metadata-Version: 2.1\nName: ffcv\nVersion: 1.0.2\n",
    }
    with tarfile.open(folder / "ffcv-1.0.2.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"ffcv-1.0.2/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


def write_project(folder: Path) -> None:
    """Writes a project that is set up by this one's Makefile."""
    shutil.copytree(ROOT / ".ci", folder / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".ci" / "system-packages").write_text("#!/bin/sh\n")
    checks = folder / ".ci" / "set_up_checks.py"
    small = re.sub(r"INSTALLED = [\d.]+e9, [\d.]+e9", "INSTALLED = 5e7, 1e8", checks.read_text())
    checks.write_text(small)
    (folder / "constraints.txt").write_text(f"torch==={TORCH}\ntorchvision==={TORCHVISION}\nother==1\n")
    (folder / "backend.py").write_text(BACKEND.format(tests=str(ROOT)))
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (folder / "pyproject.toml").write_text(build)
    for name in ("setup.cfg", "setup.py"):
        (folder / name).touch()
