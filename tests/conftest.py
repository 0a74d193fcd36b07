"""Fixtures for all tests: data sets that are written once, a real Slurm cluster, a small disk."""

from tests.helpers.environment import isolate

isolate()  # before the imports below, some of which read the environment

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST
from tests.helpers.class_sets import write_class_images
from tests.helpers.data_sets import write_data_sets
from tests.helpers.disks import tmpfs_mounted
from tests.helpers.paths import CHECKOUT
from tests.helpers.slurm_cluster import Cluster, missing
from vit.data.dataset_manifest import manifest_path


def pytest_configure(config: pytest.Config) -> None:
    """Restores SIGINT, and ignores a warning that does not apply here."""
    # Processes that a shell starts by `&` ignore SIGINT, and so would all processes that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Python 3.12 and later warn about a fork in a process with threads; here they hold no lock that a rank needs.
    config.addinivalue_line("filterwarnings", "ignore:.*use of fork:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest tests first, then those that need Slurm, so that the others run in parallel with them."""

    def priority(item: pytest.Item) -> tuple[bool, bool]:
        marker = item.get_closest_marker("timeout")
        return marker is not None and marker.args[0] > 600, "slurm" in getattr(item, "fixturenames", ())

    items.sort(key=priority, reverse=True)


@pytest.fixture(autouse=True)
def _in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in a folder that has the project's files, but not the user's `runs/` and `data/`."""
    monkeypatch.chdir(CHECKOUT)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Gives the same sums on every machine, and keeps forked ranks from inheriting the state of a thread pool."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with jpegs.beton, classes/ and, if it is installed, Fashion-MNIST's train.beton and val.beton.

    The first pytest-xdist worker that needs it writes it for all workers.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            write_data_sets(folder, write_class_images(folder / "classes"))
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def betons(_data_sets: Path) -> Path:
    """A folder with real images in raw mode: the first 512 of Fashion-MNIST in train.beton, 100 others in val.beton."""
    if not (_data_sets / "train.beton").exists():
        pytest.skip(f"Fashion-MNIST is not installed: no {PACKAGED_FASHION_MNIST} (Debian's dataset-fashion-mnist)")
    return _data_sets


@pytest.fixture(scope="session")
def jpegs(_data_sets: Path) -> Path:
    """A .beton file with 64 JPEGs of different sizes, in ten classes."""
    return _data_sets / "jpegs.beton"


@pytest.fixture(scope="session")
def class_sets(_data_sets: Path) -> Path:
    """A folder with animals/, JPEGs in one folder per class, and these images as .beton files under other names."""
    return _data_sets / "classes"


@pytest.fixture
def jpegs_copy(jpegs: Path, tmp_path: Path) -> Path:
    """A copy of the JPEG data set, which a test may damage."""
    path = tmp_path / "train.beton"
    shutil.copy(jpegs, path)
    shutil.copy(manifest_path(jpegs), manifest_path(path))
    return path


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with tmpfs_mounted(tmp_path, "1m"):
        yield tmp_path


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real Slurm cluster with two nodes on this machine; it ends with the tests, however they end."""
    if why := missing():
        pytest.skip(why)
    cluster = Cluster()
    yield cluster
    cluster.stop()
