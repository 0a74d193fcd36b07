"""Image files as a model's input: the pixels of evaluation, without the cost of resizing more than is used."""

import os
import re
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.image_files import save_image, smooth
from tests.helpers.memory import address_space
from tests.helpers.write_command import write_beton
from vit.config.schema import Config
from vit.data import image_input
from vit.data.beton import open_beton
from vit.data.decode import Decoder, RandomCrop
from vit.data.ffcv_format import RAW
from vit.data.image_file import Pixels
from vit.data.image_input import center_crop, load_image, read_file
from vit.data.loader import ValData
from vit.data.native import native_library
from vit.data.storage import MemoryStorage
from vit.distributed.world import SINGLE_RANK

SHAPES = [(60, 90), (201, 77), (77, 201), (28, 28), (1, 1), (5, 480), (480, 5), (33, 32), (32, 33)]
needs_native = pytest.mark.skipif(native_library() is None, reason="the C++ decoder was not built")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of noise, stored raw, and its images as PNG files, each a class of its own."""
    folder = tmp_path_factory.mktemp("shapes")
    random = np.random.default_rng(0)
    for i, shape in enumerate(SHAPES):
        save_image(folder / "images" / str(i) / "image.png", random.integers(0, 2, (*shape, 3), np.uint8) * 255)
    write_beton(folder / "val.beton", "imagefolder", folder / "images", "--mode", "raw")
    return folder


def config(data: Path, size: int = 28, **changes: object) -> Config:
    cfg = small_config(data)
    cfg = replace(
        cfg,
        model=replace(cfg.model, image_size=size, num_classes=len(SHAPES)),
        micro_batch=len(SHAPES),
        global_batch=len(SHAPES),
    )
    return replace(cfg, data=replace(cfg.data, **({"train": data, "val": data} | changes)))


def differences(a: Pixels, b: Pixels) -> int:
    """The largest difference of two images, in levels."""
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize(
    ("decoder", "interpolation"),
    [
        ("ffcv", "bilinear"),
        *(pytest.param("native", kind, marks=needs_native) for kind in ("bilinear", "bicubic")),
        *(pytest.param("scaled", kind, marks=needs_native) for kind in ("bilinear", "bicubic")),
    ],
)
@pytest.mark.parametrize("val_crop", [0.875, 1.0])
def test_an_image_file_gives_the_pixels_that_evaluation_reads_from_a_data_set(
    folder: Path, decoder: str, interpolation: str, val_crop: float
) -> None:
    """For every decoder, filter and crop, and for wide, tall and tiny images."""
    settings = {"decoder": decoder, "interpolation": interpolation, "val_crop": val_crop}
    cfg = config(folder / "val.beton", **settings)
    batch = next(ValData(cfg, SINGLE_RANK).batches())
    for i, expected in zip(batch.labels.tolist(), batch.images.numpy(), strict=True):
        ours = load_image(folder / "images" / str(i) / "image.png", cfg)
        assert np.array_equal(ours, expected), SHAPES[i]


@needs_native
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_the_compiled_decoder_the_pixels_are_the_same(
    folder: Path, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for very thin images, of which Pillow does not resize the whole."""
    cfg = config(folder / "val.beton", interpolation=interpolation)
    files = [folder / "images" / str(i) / "image.png" for i in range(len(SHAPES))]
    expected = [load_image(file, cfg) for file in files]
    thin = center_crop(smooth(2000, 3), cfg)
    monkeypatch.setattr(image_input, "native_library", lambda: None)
    for file, shape, pixels in zip(files, SHAPES, expected, strict=True):
        if max(shape) <= 16 * min(shape):
            assert np.array_equal(load_image(file, cfg), pixels), shape
    assert differences(center_crop(smooth(2000, 3), cfg), thin) <= 2


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
def test_a_thin_image_costs_little_memory_and_time(folder: Path, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resized as a whole, 1 x 30,000 pixels would become 256 x 7,680,000; an even thinner one, 2 ** 33."""
    if not native:
        monkeypatch.setattr(image_input, "native_library", lambda: None)
    cfg = config(folder / "val.beton", size=224, decoder="auto", val_crop=0.875)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for shape in ((1, 30_000), (30_000, 1), (1, 34_000_000), (34_000_000, 1)):
        pixels = np.broadcast_to(np.array([10, 20, 250], np.uint8), (*shape, 3))
        assert (center_crop(pixels, cfg) == [10, 20, 250]).all(), shape
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB; most of it for the last two


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe without a writer and a terminal would block the command, a device may have no end."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path / "link.jpg", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ValueError, match=r"^it is not a regular file$"):
            read_file(path)
    with pytest.raises(ValueError, match=r"^it is a folder; give the images in it \(FOLDER/\*\)$"):
        read_file(tmp_path)
    with open(tmp_path / "video.mp4", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"^it has 1,099,511,627,776 bytes, more than an image of 179 megapixels$"):
        read_file(tmp_path / "video.mp4")


@needs_native
def test_memory_that_is_not_enough_for_the_decoder_is_an_error_that_names_the_file(jpegs: Path) -> None:
    """Not the end of the process: 160 MB of weights for a row of ten million pixels.  Later images are decoded."""
    beton = replace(open_beton(jpegs), storage=MemoryStorage(np.zeros(30_000_000, np.uint8)))
    fields = ("labels", "mode", "height", "width", "offset", "size")
    row = replace(beton, **{k: np.array([v]) for k, v in zip(fields, (0, RAW, 1, 10**7, 0, 3 * 10**7), strict=True)})
    crop, zero, out = RandomCrop(0, (1.0, 1.0), (1e7, 1e7)), np.zeros(1, np.int64), np.ones((1, 28, 28, 3), np.uint8)
    decoder = Decoder(row, crop, "native")
    with address_space(50_000_000), pytest.raises(MemoryError, match=re.escape(str(jpegs))):
        decoder.decode(zero, zero, out)
    decoder.decode(zero, zero, out)
    assert (out == 0).all()
