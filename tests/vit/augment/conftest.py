"""A build of the C++ library for other processors."""

import ctypes
import shutil
import subprocess

import pytest

from tests.helpers.paths import ROOT
from vit.augment import pixel_ops


@pytest.fixture(scope="session")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A build without AVX2, as for another processor."""
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    built = tmp_path_factory.mktemp("portable") / "pixel_ops.so"
    flags = ["-O2", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-DPORTABLE"]
    source = ROOT / "vit" / "augment" / "pixel_ops.cpp"
    subprocess.run(["g++", *flags, str(source), "-o", str(built)], check=True)
    return pixel_ops.declare_signatures(ctypes.CDLL(str(built)))
