"""Fashion-MNIST from Debian's package or from torchvision's copy."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST, fashion_mnist, read_idx
from data_prep.sources.source import InputError
from tests.helpers.write_command import needs_fashion_mnist


@needs_fashion_mnist
def test_debians_package_and_torchvisions_copy_give_the_same_images(tmp_path: Path) -> None:
    """torchvision's copy is read where the package is not installed."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in PACKAGED_FASHION_MNIST.iterdir():
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    packaged, downloaded = fashion_mnist("val", tmp_path), fashion_mnist("val", tmp_path, packaged=tmp_path / "none")
    assert len(packaged.labels) == 10_000
    assert packaged.classes == downloaded.classes
    assert packaged.classes[9] == "Ankle boot"
    np.testing.assert_array_equal(packaged.labels, downloaded.labels)
    np.testing.assert_array_equal(np.stack(packaged.images), np.stack(downloaded.images))


def test_a_damaged_idx_file_is_named(tmp_path: Path) -> None:
    """It is truncated, not gzipped, or shorter than its header says."""
    content = gzip.compress(b"\0\0\x08\x01" + (20).to_bytes(4, "big") + bytes(20))
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    assert read_idx(path).shape == (20,)
    for damaged in (content[:-9], b"labels", gzip.compress(gzip.decompress(content)[:-1])):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"labels\.gz"):
            read_idx(path)
