"""Which pixels and labels a .beton contains, as FFCV's own Loader reads them."""

import gzip
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.beton_reader import read_beton_index
from data_prep.encode import scale_down
from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST
from data_prep.sources.imagenet import ilsvrc
from data_prep.sources.source import read_image_file
from data_prep.write_beton import main
from tests.helpers.image_files import noise, save_bytes, save_image, smooth
from tests.helpers.imagenet import UNUSUAL_FILES
from tests.helpers.images import psnr
from tests.helpers.stock_ffcv import StockFfcv
from tests.helpers.write_command import file_names, needs_fashion_mnist, write_beton
from vit.data.dataset_manifest import read_dataset_manifest
from vit.data.image_file import decode_image


@needs_fashion_mnist
def test_ffcv_reads_the_exact_pixels_of_fashion_mnist(stock_ffcv: StockFfcv, tmp_path: Path) -> None:
    """The first 300 test images and labels, in the order of the published files."""
    out = tmp_path / "val.beton"
    assert main(["fashion-mnist", "--split", "val", "--out", str(out), "--limit", "300", "--no-shuffle"]) == 0
    pixels = gzip.decompress((PACKAGED_FASHION_MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((PACKAGED_FASHION_MNIST / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    images, found = stock_ffcv.read(out)
    gray = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)[:300]
    np.testing.assert_array_equal(images, np.stack([gray] * 3, axis=-1))
    assert found.tolist() == list(labels[:300])


def test_images_of_every_kind_are_stored_upright_in_rgb(stock_ffcv: StockFfcv, tmp_path: Path) -> None:
    """Gray, palette, RGBA, CMYK, 16-bit and EXIF-rotated images: raw pixels are those that a viewer shows."""
    rgb, gray = noise(32, 40), noise(32, 40, 1)[..., 0]
    palette = noise(1, 256, 2)[0]
    cmyk = np.dstack([rgb, gray])
    folder = tmp_path / "images" / "only"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: the left of the stored image is its top
    save_image(folder / "0-rgb.png", rgb)
    save_image(folder / "1-gray.png", gray)
    save_image(folder / "2-rgba.png", np.dstack([rgb, gray]))
    save_image(folder / "3-sixteen-bits.png", gray.astype(np.uint16) * 256 + 77)
    save_image(folder / "4-rotated.png", np.ascontiguousarray(np.rot90(rgb)), exif=exif)
    indexed = Image.fromarray(gray, "P")
    indexed.putpalette(palette.tobytes())
    indexed.save(folder / "5-palette.png")
    Image.fromarray(cmyk, "CMYK").save(folder / "6-cmyk.tif")
    out = write_beton(tmp_path / "out.beton", "imagefolder", folder.parent, "--mode", "raw", "--no-shuffle")
    images, labels = stock_ffcv.read(out)
    gray_as_rgb = np.stack([gray] * 3, axis=-1)
    cmyk_as_rgb = np.asarray(Image.fromarray(cmyk, "CMYK").convert("RGB"))
    expected = [rgb, gray_as_rgb, rgb, gray_as_rgb, rgb, palette[gray], cmyk_as_rgb]
    for name, image, pixels in zip(sorted(file_names(folder)), images, expected, strict=True):
        np.testing.assert_array_equal(image, pixels, err_msg=name)
    assert labels.tolist() == [0] * 7


def test_large_images_are_scaled_down_and_jpegs_stay_close_to_their_originals(
    stock_ffcv: StockFfcv, tmp_path: Path
) -> None:
    """With --max-resolution 64, 96x128 pixels become 48x64; at quality 90, a smooth image keeps 35 dB of PSNR."""
    for seed in range(4):
        save_image(tmp_path / "images" / "ab"[seed % 2] / f"{seed}.png", smooth(96, 128, seed))
    arguments = ["imagefolder", tmp_path / "images", "--max-resolution", 64, "--no-shuffle"]
    images, labels = stock_ffcv.read(write_beton(tmp_path / "out.beton", *arguments))
    assert images.shape == (4, 48, 64, 3)
    assert labels.tolist() == [0, 0, 1, 1]
    for image, seed in zip(images, (0, 2, 1, 3), strict=True):
        original = smooth(96, 128, seed).astype(float).reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
        assert psnr(image, original) > 35


def test_ffcv_reads_copied_jpegs_and_left_out_images_leave_no_gap(stock_ffcv: StockFfcv, imagenet: Path) -> None:
    """ILSVRC's tar with every unusual file and one bad image: FFCV's Loader gives the right pixels and labels."""
    content = bytearray((imagenet / "train.tar").read_bytes())
    source = ilsvrc(imagenet / "train.tar")
    bad = source.images[5]
    assert not isinstance(bad, str | np.ndarray)
    content[bad.offset : bad.offset + bad.size] = bytes(bad.size)
    (imagenet / "train.tar").write_bytes(content)
    arguments = ["ilsvrc", imagenet / "train.tar", "--on-bad", "skip", "--no-shuffle", "--quality", 95]
    out = write_beton(imagenet / "x.beton", *arguments)
    manifest = read_dataset_manifest(out)
    assert manifest.left_out == [{"image": source.describe(5), "why": "not an image that Pillow can read"}]
    assert manifest.image.copied > 10
    images, labels = stock_ffcv.read(out, crop=32)
    kept = [i for i in range(24) if i != 5]
    assert labels.tolist() == source.labels[kept].tolist()
    for sample, image in zip(kept, images, strict=True):
        seen = scale_down(decode_image(read_image_file(source.images[sample])).pixels, 500)  # type: ignore[arg-type]
        side = min(seen.shape[:2])
        top, left = ((size - side) // 2 for size in seen.shape[:2])
        square = cv2.resize(seen[top : top + side, left : left + side], (32, 32), interpolation=cv2.INTER_AREA)
        assert psnr(image, np.asarray(square, np.uint8)) > 22, source.describe(sample)


@pytest.mark.parametrize("name", UNUSUAL_FILES)
def test_unusual_files_are_decoded_to_correct_rgb(name: str) -> None:
    """The pixels that a viewer shows, within 30 dB for lossy formats."""
    content, seen = UNUSUAL_FILES[name]()
    pixels = scale_down(decode_image(content).pixels, 500)
    assert pixels.shape == seen.shape
    assert psnr(pixels, seen) > 30


def test_unusual_files_are_stored_as_baseline_jpegs(tmp_path: Path) -> None:
    """All of them in one file, none copied, and close to what a viewer shows."""
    for name, make in UNUSUAL_FILES.items():
        save_bytes(tmp_path / "images" / "only" / f"{name}.JPEG", make()[0])
    arguments = ["imagefolder", tmp_path / "images", "--no-shuffle", "--quality", 95]
    out = write_beton(tmp_path / "x.beton", *arguments)
    index = read_beton_index(out, 1)
    with out.open("rb") as file:
        for sample, name in enumerate(sorted(UNUSUAL_FILES)):
            seen = UNUSUAL_FILES[name]()[1]
            pixels = index.read_pixels(file.fileno(), sample)
            assert pixels.shape == seen.shape, name
            assert psnr(pixels, seen) > 24, name  # chroma subsampling blurs the edges of the CMYK image
    assert read_dataset_manifest(out).image.copied == 0
