"""The `ffcv` decoder gives the validation images of FFCV's own Loader, byte for byte.

Running FFCV's Loader takes half a minute, because it compiles numba code.  So its result is recorded here; where the
versions of libjpeg-turbo or OpenCV are others, the test runs FFCV itself.  To record again, with stock FFCV:

    python -m tests.vit.data.test_stock_ffcv
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.helpers.data_sets import JPEGS, write_data_sets
from tests.helpers.loading import decoded
from tests.helpers.paths import CHECKOUT
from vit.data.beton import open_beton
from vit.data.decode import CenterCrop

SIZE, RATIO = 64, 0.875  # pixels; side of the center crop / shorter side of the image

# Digests of jpegs.beton, and of the images and labels that FFCV 1.0.2 (OpenCV 4.6, libjpeg-turbo 2.1) loads from it.
FILE_DIGEST = "75093c3c6df4d25152d8cc18277406d02082ee40ec842c05ef9f790132b0ef23"
FFCV_DIGEST = "7958d096cd112ee56a51aed9cdeb36eaf275b0c0adae5566322f835eec608269"


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of uint8 images (B, S, S, 3) and labels (B,)."""
    return hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def test_validation_images_are_those_of_stock_ffcv(jpegs: Path) -> None:
    """JPEGs of 64 sizes, decoded, center-cropped and resized; images and labels, in the order of the file."""
    beton = open_beton(jpegs)
    images = decoded(jpegs, CenterCrop(RATIO), SIZE, np.arange(JPEGS))
    found = digest(images, beton.labels)
    if (beton.sha256, found) != (FILE_DIGEST, FFCV_DIGEST):
        command = [sys.executable, "-m", __name__, str(jpegs)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        assert found == done.stdout.split()[-1]


def ffcv_digest(path: Path) -> str:
    """The digest of what FFCV's own Loader loads from a file."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    pipelines = {"image": [CenterCropRGBImageDecoder((SIZE, SIZE), RATIO)], "label": [IntDecoder()]}
    order = OrderOption.SEQUENTIAL
    loader = Loader(str(path), batch_size=16, num_workers=1, order=order, pipelines=pipelines, os_cache=True)
    images, labels = zip(*[(image.copy(), label.copy()) for image, label in loader], strict=True)
    return digest(np.concatenate(images), np.concatenate(labels)[:, 0])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(*sys.argv[1:]) if sys.argv[1:] else Path(folder) / "jpegs.beton"
        if not path.exists():
            write_data_sets(Path(folder))
        print("FILE_DIGEST", open_beton(path).sha256)
        print("FFCV_DIGEST", ffcv_digest(path))
