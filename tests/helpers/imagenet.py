"""A miniature of ImageNet (ILSVRC2012) whose training images include every unusual file format."""

import base64
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep import jpeg
from tests.helpers.image_files import Pixels, encode_image, save_bytes, smooth

# The devkit's meta.mat as scipy.io.savemat writes it, with four synsets; the last one has children.
META = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IE1vbiBOb3YgMjMgMDg6NTc6NTcgMjAyNgAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAnwEAAHic7VVBTgIxFC0EEExEdMWyB2AxQyYCK0h0"
    "IYkxRg0uSR0KbZzpmLYEvYEH8BKewwtxBFtngNKgkBl2+pM/zfuT935/89JWAQD1CgAltZZV5kEcxQQXVOaSPFApXpnAUqj/BXCS1N9U9q/u"
    "BrfnTcdtDvsXWuDhOl6XMYv4SJiFSRCJtQKbhkOf0GDEMfsurIGFBsNySDCdEJlQJEeUDWmIJliAqiq2wWqekjVPzkgdlaQex7yr+T2DX9jA"
    "rxj8WoKZ03TdTqvdSepa53KLTt3S0fiJSjiOXhpwMA2esYAh8nkkqUi7LxGiINCKxr7Sn0/Md37hL8Lk76tvav7Ney9j/156X7ie57TOPGOO"
    "bb44tXQ0lpj5pAHvKfMRlPq70tu2r2NLT+Mxx4LMkMQcjqkg/75I1b+cwRf6rmx75n3R3qJTtHQ09jliGOzmg0OLr3GA+ATDR8pHezhP8Fd9"
    "UMvgAxVuy3N+mGOTTsnS0e8yZpLKz4+dfHBk8TWWBEk4I9QnkIqs57nhvtzEz1v82pI+75o6Wd/zLL76An3fahk="
)
WNIDS = ("n01440764", "n02012849", "n02119789")
NAMES = ("tench, Tinca tinca", "crane", "kit fox, Vulpes macrotis")
NUMBERS = (2, 3, 1)  # class numbers in the devkit

PICTURE = smooth(60, 80, 5)
GRAY = PICTURE[..., 0]
LONG = smooth(1, 5000)[0]  # one pixel high or wide: FFCV's own writer fails
TENTHS = LONG.reshape(500, 10, 3).mean(axis=1).round().astype(np.uint8)


def cmyk_jpeg() -> tuple[bytes, Pixels]:
    """Red, white, black and cyan in Adobe's inverted CMYK, like 22 files of ImageNet."""
    inks = np.zeros((32, 64, 4), np.uint8)
    inks[:, :16, 1:3] = 255
    inks[:, 32:48, 3] = 255
    inks[:, 48:, 0] = 255
    content = encode_image(inks, mode="CMYK", subsampling=0)
    assert b"Adobe" in content[:64]
    seen = np.full((32, 64, 3), 255, np.uint8)
    seen[:, :16] = (255, 0, 0)
    seen[:, 32:48] = 0
    seen[:, 48:] = (0, 255, 255)
    return content, seen


def rotated_jpeg() -> tuple[bytes, Pixels]:
    """A JPEG that EXIF rotates by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the left of the stored image is its top
    return encode_image(np.ascontiguousarray(np.rot90(PICTURE)), exif=exif), PICTURE


def palette_png() -> tuple[bytes, Pixels]:
    """A PNG with a palette of 256 colors."""
    indexed = Image.fromarray(PICTURE).quantize(256)
    file = io.BytesIO()
    indexed.save(file, "PNG")
    return file.getvalue(), np.asarray(indexed.convert("RGB"))


def adobe_rgb_jpeg() -> tuple[bytes, Pixels]:
    """A JPEG that stores red, green and blue: Adobe's transform 0."""
    content = encode_image(PICTURE, keep_rgb=True, subsampling=0)
    assert jpeg.baseline_size(content) is None
    return content, PICTURE


# Unusual files, some of which occur in ImageNet, each with the pixels that a viewer shows.
UNUSUAL_FILES: dict[str, Callable[[], tuple[bytes, Pixels]]] = {
    "cmyk": cmyk_jpeg,
    "png-called-jpeg": lambda: (encode_image(PICTURE, "PNG"), PICTURE),
    "gray": lambda: (encode_image(GRAY), np.dstack([GRAY] * 3)),
    "palette": palette_png,
    "sixteen-bits": lambda: (encode_image(GRAY.astype(np.uint16) * 256 + 99, "PNG"), np.dstack([GRAY] * 3)),
    "rotated": rotated_jpeg,
    "rgb": adobe_rgb_jpeg,
    "progressive": lambda: (encode_image(PICTURE, progressive=True), PICTURE),
    "wide": lambda: (encode_image(LONG[None], "PNG"), TENTHS[None]),
    "tall": lambda: (encode_image(LONG[:, None], "PNG"), TENTHS[:, None]),
}


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def make_imagenet(path: Path) -> None:
    """Writes train.tar (24 images), val.tar (6), devkit.tar.gz, and the same images as Kaggle distributes them."""
    kaggle = path / "kaggle"
    folder = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    contents = [make()[0] for make in UNUSUAL_FILES.values()]
    contents += [encode_image(smooth(50 + 3 * seed, 90, seed)) for seed in range(14)]
    with tarfile.open(path / "train.tar", "w", format=tarfile.GNU_FORMAT) as train:
        for label in (2, 0, 1):  # not the order of the classes
            wnid, inner = WNIDS[label], io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as class_tar:
                for number in reversed(range(label, len(contents), 3)):
                    name = f"{wnid}_{number}.JPEG"
                    save_bytes(folder / "train" / wnid / name, contents[number])
                    add_member(class_tar, name, contents[number])
            add_member(train, f"{wnid}.tar", inner.getvalue())
    solution = ["ImageId,PredictionString"]
    with tarfile.open(path / "val.tar", "w") as val:
        for number in (2, 0, 1, 3, 5, 4):
            name = f"ILSVRC2012_val_{number + 1:08}"
            add_member(val, f"{name}.JPEG", contents[10 + number])
            save_bytes(folder / "val" / f"{name}.JPEG", contents[10 + number])
            solution.append(f"{name},{WNIDS[number % 3]} 1 2 3 4 {WNIDS[number % 3]} 5 6 7 8 ")
    ground_truth = [str(NUMBERS[number % 3]) for number in range(6)]
    write_devkit(path / "devkit.tar.gz", META, "\n".join(ground_truth).encode())
    (kaggle / "LOC_val_solution.csv").write_text("\n".join(solution) + "\n")
    lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES, strict=True)]
    (kaggle / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")


def write_devkit(path: Path, meta: bytes, ground_truth: bytes) -> None:
    """Writes ILSVRC2012_devkit_t12.tar.gz with the given contents of its two files of interest."""
    with tarfile.open(path, "w:gz") as devkit:
        add_member(devkit, "ILSVRC2012_devkit_t12/data/meta.mat", meta)
        add_member(devkit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", ground_truth)
