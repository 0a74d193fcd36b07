"""Fashion-MNIST: 70,000 images of 28 x 28 pixels, from Debian's package or downloaded by torchvision."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from data_prep.sources.source import InputError, Pixels, Source

# The folder of the four files of Debian's package dataset-fashion-mnist.
PACKAGED_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(split: str, root: Path, packaged: Path = PACKAGED_FASHION_MNIST, fetch: bool = True) -> Source:
    """Fashion-MNIST: 60,000 gray 28x28 training images ("train") or 10,000 test images ("val") in 10 classes.

    Reads the Debian package if it is installed, else torchvision's copy in `root`, which is downloaded if missing, but
    not without `fetch`.  Raises InputError if a file is damaged or cannot be downloaded.
    """
    from torchvision.datasets import FashionMNIST

    if packaged.is_dir():
        prefix = {"train": "train", "val": "t10k"}[split]
        images = read_idx(packaged / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(packaged / f"{prefix}-labels-idx1-ubyte.gz")
    else:
        try:
            dataset = FashionMNIST(str(root), train=split == "train", download=fetch)
        except (OSError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise InputError(
                f"{root}: has no Fashion-MNIST, and the download failed ({why}); "
                "install Debian's package dataset-fashion-mnist, or give a --root that contains it"
            ) from error
        images, labels = dataset.data.numpy(), dataset.targets.numpy()
    return Source(tuple(FashionMNIST.classes), list(images), labels.astype(np.int64))


def read_idx(path: Path) -> Pixels:
    """The bytes of a gzipped IDX file (http://yann.lecun.com/exdb/mnist): images (N, 28, 28) or labels (N,).

    Raises InputError if the file is missing, damaged or of another type.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); reinstall the package dataset-fashion-mnist") from error
    magic = content[:4]
    shape = np.frombuffer(content, ">u4", count=magic[3], offset=4).tolist() if len(content) >= 16 else []
    if magic[:3] != b"\0\0\x08" or len(content) != 4 + 4 * len(shape) + math.prod(shape):
        raise InputError(f"{path}: is not a complete IDX file of bytes; reinstall the package dataset-fashion-mnist")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
