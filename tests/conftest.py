"""Real data sets, made once for all tests, and a config for them."""

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster import Cluster, missing
from PIL import Image

from data_prep.sources.source import PACKAGED_FASHION_MNIST
from vit.config.schema import Config, DataConfig, ModelConfig
from vit.data.ffcv_format import manifest_path

TRAIN, VAL, JPEGS = 512, 100, 64  # samples; no usual batch divides the second
CLASSES = 10

# One process for all files, and not this one: importing FFCV compiles for seconds.
WRITE = """
import json, sys
from data_prep.write_beton import main
sys.exit(max(main(arguments) for arguments in json.load(sys.stdin)))
"""


def small_config(data: Path) -> Config:
    """Eight shards of 8 images a step, and a model of a few thousand weights.

    `data` is a folder with train.beton and val.beton, or one file for both.
    """
    train, val = (data / "train.beton", data / "val.beton") if data.is_dir() else (data, data)
    return Config(
        seed=7,
        epochs=2,
        global_batch=64,
        micro_batch=8,
        device="cpu",
        model=ModelConfig(image_size=28, patch_size=7, width=16, depth=2, heads=2, mlp_dim=32, num_classes=CLASSES),
        data=DataConfig(train=train, val=val, workers=1, crop_scale=(0.3, 1.0)),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Signals as on a terminal, and no warnings that mean nothing here."""
    # What a shell starts by `&` ignores SIGINT, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Python 3.12 and later warn of a fork beside threads; ours hold no lock that a rank needs.
    config.addinivalue_line("filterwarnings", "ignore:.*use of fork:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, and those that wait for Slurm: the others run beside them."""

    def place(item: pytest.Item) -> tuple[bool, bool]:
        marker = item.get_closest_marker("timeout")
        return marker is not None and marker.args[0] > 600, "slurm" in getattr(item, "fixturenames", ())

    items.sort(key=place, reverse=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The same sums on every machine; and ranks, which are forks, find no pool of threads that is not theirs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with jpegs.beton and, where the images are there, Fashion-MNIST's train.beton and val.beton.

    Of several processes of tests the first one that needs it makes it for all.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            write_data_sets(folder)
            (folder / "done").touch()
    return folder


def write_data_sets(folder: Path) -> None:
    """In a process of its own."""
    photographs(folder / "photographs")
    commands = [["imagefolder", str(folder / "photographs"), "--out", str(folder / "jpegs.beton"), "--workers", "1"]]
    if PACKAGED_FASHION_MNIST.is_dir():
        # The training set in its own order, so that a test can say which image a sample must be.
        for split, options in (("train", ["--limit", str(TRAIN), "--no-shuffle"]), ("val", ["--limit", str(VAL)])):
            out = str(folder / f"{split}.beton")
            commands.append(
                ["fashion-mnist", "--split", split, *options, "--mode", "raw", "--out", out, "--workers", "1"]
            )
    done = subprocess.run(
        [sys.executable, "-c", WRITE], input=json.dumps(commands), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def betons(_data_sets: Path) -> Path:
    """A folder with real images in raw mode: Fashion-MNIST's first 512 in train.beton, 100 others in val.beton."""
    if not (_data_sets / "train.beton").exists():
        pytest.skip(f"Fashion-MNIST is not installed: no {PACKAGED_FASHION_MNIST} (Debian's dataset-fashion-mnist)")
    return _data_sets


@pytest.fixture(scope="session")
def jpegs(_data_sets: Path) -> Path:
    """A .beton of 64 JPEGs of many sizes, in ten classes."""
    return _data_sets / "jpegs.beton"


@pytest.fixture
def copy(jpegs: Path, tmp_path: Path) -> Path:
    """A data set to be damaged."""
    path = tmp_path / "train.beton"
    shutil.copy(jpegs, path)
    shutil.copy(manifest_path(jpegs), manifest_path(path))
    return path


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with mounted(tmp_path, "1m"):
        yield tmp_path


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real Slurm of two nodes on this machine; it ends with the tests, whatever ends them."""
    if why := missing():
        pytest.skip(why)
    cluster = Cluster()
    yield cluster
    cluster.stop()


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size in a folder, as long as it is needed; the test is skipped where there can be none."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here, root alone may")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def photographs(folder: Path) -> None:
    """Synthesised pictures with slow colours, edges and grain, 40 to 300 pixels a side, one folder a class."""
    random = np.random.default_rng(0)
    for i in range(JPEGS):
        h, w = random.integers(40, 301, 2)
        y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j][:, :, :, None]  # (h, w, 1)
        frequency, phase = random.uniform(0.3, 3, (2, 3)), random.uniform(0, 2 * math.pi, 3)
        colours = 128 + 90 * np.sin(2 * math.pi * (frequency[0] * x + frequency[1] * y) + phase)  # (h, w, 3)
        disc = (x - random.uniform()) ** 2 + (y - random.uniform()) ** 2 < 0.1
        pixels = np.where(disc, 255 - colours, colours) + random.normal(0, 6, (h, w, 3))
        path = folder / f"class-{i % CLASSES}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
