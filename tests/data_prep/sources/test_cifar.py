"""CIFAR-10 and CIFAR-100, from their archives or unpacked."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from data_prep.sources.cifar import LAYOUTS, cifar
from data_prep.sources.source import InputError
from tests.helpers.image_files import save_bytes
from tests.helpers.published_data import cifar_files, cifar_pixels, pickled, write_tar
from tests.helpers.write_command import write_beton
from vit.data.dataset_manifest import read_dataset_manifest


def torchvisions(name: str, root: Path, train: bool) -> CIFAR10:
    """torchvision's reader, which accepts the digests of the miniature."""
    files = {path.rpartition("/")[2]: hashlib.md5(content).hexdigest() for path, content in cifar_files(name).items()}
    base = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]

    class Miniature(base):  # type: ignore[misc, valid-type]
        train_list = tuple((file, files[file]) for file, _ in base.train_list)
        test_list = tuple((file, files[file]) for file, _ in base.test_list)
        meta = base.meta | {"md5": files[base.meta["filename"]]}

    return Miniature(str(root), train=train)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_has_torchvisions_classes_labels_and_pixels(name: str, split: str, tmp_path: Path) -> None:
    """From the archive, which is not unpacked, or from its folder."""
    for path, content in cifar_files(name).items():
        save_bytes(tmp_path / "unpacked" / path, content)
    layout = LAYOUTS[name]
    archive = write_tar(tmp_path / "packed" / layout.archive.name, cifar_files(name), "w:gz")
    dataset = torchvisions(name, tmp_path / "unpacked", split == "train")
    for root in (archive.parent, tmp_path / "unpacked", tmp_path / "unpacked" / layout.archive.top):
        source = cifar(name, split, root)
        assert list(source.classes) == dataset.classes
        assert source.labels.tolist() == dataset.targets
        np.testing.assert_array_equal(np.stack(source.images), dataset.data)  # type: ignore[arg-type]
    assert list(archive.parent.iterdir()) == [archive]
    assert (layout.archive.url, layout.archive.md5) == (dataset.url, dataset.tgz_md5)


def test_cifar100_is_labeled_by_its_superclasses_on_request(tmp_path: Path) -> None:
    """Twenty of them, whose names are in the file."""
    write_tar(tmp_path / "cifar-100-python.tar.gz", cifar_files("cifar100"), "w:gz")
    options = ["--root", tmp_path, "--target", "coarse", "--no-shuffle"]
    out = write_beton(tmp_path / "x.beton", "cifar100", "--split", "val", *options)
    manifest = read_dataset_manifest(out, training=False)
    assert manifest.classes == [f"coarse {i}" for i in range(20)]
    assert [i for i, count in enumerate(manifest.histogram) if count] == [1, 8, 13, 14]
    assert manifest.image.mode == "raw"
    expected = cifar_pixels(cifar_files("cifar100")["cifar-100-python/test"])
    assert np.ascontiguousarray(expected).tobytes() in out.read_bytes().replace(b"\0" * 4096, b"")


class RunsCode:
    """Unpickling it would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    """A file from elsewhere with the name of a batch is refused, and what it wants to call is named."""
    for path, content in cifar_files("cifar10").items():
        save_bytes(tmp_path / path, content)
    marker = tmp_path / "was-run"
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickled({"data": RunsCode(marker), "labels": [1]}))
    with pytest.raises(InputError, match=r"test_batch is damaged \(it contains posix\.mkdir\)"):
        cifar("cifar10", "val", tmp_path)
    assert not marker.exists()


def test_damaged_or_missing_files_of_cifar_are_named(tmp_path: Path) -> None:
    """An archive or a batch that is cut, missing, or has other contents."""
    files = cifar_files("cifar10")
    archive = write_tar(tmp_path / "packed" / "cifar-10-python.tar.gz", files, "w:gz")
    archive.write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz: cannot be read .*; download it again"):
        cifar("cifar10", "train", archive.parent)
    write_tar(archive, {name: content for name, content in files.items() if not name.endswith("_3")}, "w:gz")
    with pytest.raises(InputError, match=r"contains no cifar-10-batches-py/data_batch_3"):
        cifar("cifar10", "train", archive.parent)
    for path, content in files.items():
        save_bytes(tmp_path / path, content)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    whole = batch.read_bytes()
    for content in (whole[:-1000], b"", b"hello", pickled({"data": np.zeros((2, 3072), np.uint8), "labels": [1]})):
        batch.write_bytes(content)
        with pytest.raises(InputError, match="data_batch_2 is damaged"):
            cifar("cifar10", "train", tmp_path)
    batch.unlink()
    with pytest.raises(InputError, match="data_batch_2: cannot be read"):
        cifar("cifar10", "train", tmp_path)
