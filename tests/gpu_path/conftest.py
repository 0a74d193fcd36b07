"""The null GPU, which is built once for all tests."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.null_gpu import build, missing
from tests.helpers.null_gpu_ranks import NullGpu


@pytest.fixture(scope="session")
def null_gpu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the null GPU's libraries; the first pytest-xdist worker that needs it builds it for all."""
    if why := missing():
        pytest.skip(why)
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "null-gpu"
    with (base / "null-gpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            build(folder)
    return folder


@pytest.fixture(scope="session")
def null_gpu(null_gpu_folder: Path) -> Iterator[NullGpu]:
    """Runs functions on ranks with null GPUs."""
    null_gpu = NullGpu(null_gpu_folder)
    yield null_gpu
    null_gpu.stop()
