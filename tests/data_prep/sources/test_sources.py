"""Where images come from: ImageNet's tars read in place, and images that are not what their names say."""

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_prep import jpeg
from data_prep.beton_reader import open_beton
from data_prep.encode import is_bad_image, scaled
from data_prep.sources.imagenet import ilsvrc, kaggle, read_devkit
from data_prep.sources.matlab import struct_array
from data_prep.sources.source import InputError, Source, decode, read
from data_prep.write_beton import main
from vit.data.dataset_manifest import read_dataset_manifest
from vit.data.ffcv_format import JPEG, RAW

Pixels = NDArray[np.uint8]

# As scipy.io.savemat writes what the devkit's meta.mat holds, of four synsets; the last has children.
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
NUMBERS = (2, 3, 1)  # the devkit's, of these


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: NDArray[Any], kind: str = "JPEG", mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    options = {"quality": 92} | options if kind == "JPEG" else options
    Image.fromarray(pixels, mode).save(file, kind, **options)
    return file.getvalue()


def psnr(one: Pixels, other: Pixels) -> float:
    """Decibels."""
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2))))


# Oddities of ImageNet and of others: real files, each with the pixels that a person sees.

PICTURE = smooth(60, 80, 5)


def cmyk_jpeg() -> tuple[bytes, Pixels]:
    """Red, white, black and cyan in Adobe's inverted CMYK, as in 22 of ImageNet's files."""
    inks = np.zeros((32, 64, 4), np.uint8)
    inks[:, :16, 1:3] = 255
    inks[:, 32:48, 3] = 255
    inks[:, 48:, 0] = 255
    content = encoded(inks, mode="CMYK", subsampling=0)
    assert b"Adobe" in content[:64]
    seen = np.full((32, 64, 3), 255, np.uint8)
    seen[:, :16] = (255, 0, 0)
    seen[:, 32:48] = 0
    seen[:, 48:] = (0, 255, 255)
    return content, seen


def turned_jpeg() -> tuple[bytes, Pixels]:
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image's left is its top
    return encoded(np.ascontiguousarray(np.rot90(PICTURE)), exif=exif), PICTURE


def palette_png() -> tuple[bytes, Pixels]:
    indexed = Image.fromarray(PICTURE).quantize(256)
    file = io.BytesIO()
    indexed.save(file, "PNG")
    return file.getvalue(), np.asarray(indexed.convert("RGB"))


def adobe_rgb_jpeg() -> tuple[bytes, Pixels]:
    """Stored as red, green and blue: Adobe's transform 0."""
    content = encoded(PICTURE, keep_rgb=True, subsampling=0)
    assert jpeg.baseline_size(content) is None
    return content, PICTURE


GRAY = PICTURE[..., 0]
LONG = smooth(1, 5000)[0]  # one pixel high, or wide: FFCV's own writer fails
TENTHS = LONG.reshape(500, 10, 3).mean(axis=1).round().astype(np.uint8)
ODDITIES: dict[str, Callable[[], tuple[bytes, Pixels]]] = {
    "cmyk": cmyk_jpeg,
    "png-called-jpeg": lambda: (encoded(PICTURE, "PNG"), PICTURE),
    "gray": lambda: (encoded(GRAY), np.dstack([GRAY] * 3)),
    "palette": palette_png,
    "sixteen-bits": lambda: (encoded(GRAY.astype(np.uint16) * 256 + 99, "PNG"), np.dstack([GRAY] * 3)),
    "turned": turned_jpeg,
    "rgb": adobe_rgb_jpeg,
    "progressive": lambda: (encoded(PICTURE, progressive=True), PICTURE),
    "thin": lambda: (encoded(LONG[None], "PNG"), TENTHS[None]),
    "tall": lambda: (encoded(LONG[:, None], "PNG"), TENTHS[:, None]),
}


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """A miniature of ILSVRC2012 with every oddity: the two tars and the devkit, and Kaggle's layout of the same."""
    kaggles = tmp_path / "kaggle"
    folder = kaggles / "ILSVRC" / "Data" / "CLS-LOC"
    contents = [make()[0] for make in ODDITIES.values()]
    contents += [encoded(smooth(50 + 3 * seed, 90, seed)) for seed in range(14)]
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT) as train:
        for label in (2, 0, 1):  # not the classes' order
            wnid, inner = WNIDS[label], io.BytesIO()
            (folder / "train" / wnid).mkdir(parents=True)
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as of_class:
                for number in reversed(range(label, len(contents), 3)):
                    name = f"{wnid}_{number}.JPEG"
                    (folder / "train" / wnid / name).write_bytes(contents[number])
                    add(of_class, name, contents[number])
            add(train, f"{wnid}.tar", inner.getvalue())
    truth, solution = [], ["ImageId,PredictionString"]
    (folder / "val").mkdir()
    with tarfile.open(tmp_path / "val.tar", "w") as val:
        for number in (2, 0, 1, 3, 5, 4):
            name = f"ILSVRC2012_val_{number + 1:08}"
            add(val, f"{name}.JPEG", contents[10 + number])
            (folder / "val" / f"{name}.JPEG").write_bytes(contents[10 + number])
            solution.append(f"{name},{WNIDS[number % 3]} 1 2 3 4 {WNIDS[number % 3]} 5 6 7 8 ")
    truth = [str(NUMBERS[number % 3]) for number in range(6)]
    with tarfile.open(tmp_path / "devkit.tar.gz", "w:gz") as devkit:
        add(devkit, "ILSVRC2012_devkit_t12/data/meta.mat", META)
        add(devkit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "\n".join(truth).encode())
    (kaggles / "LOC_val_solution.csv").write_text("\n".join(solution) + "\n")
    lines = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES, strict=True)]
    (kaggles / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def written(out: Path, *arguments: object) -> Path:
    assert main([*map(str, arguments), "--out", str(out), "--workers", "2"]) == 0
    return out


def stored(beton: Path) -> list[bytes]:
    """The bytes of each sample."""
    found = open_beton(beton, len(read_dataset_manifest(beton).classes))
    whole = beton.read_bytes()
    return [whole[start : start + size] for start, size in zip(found.offset, found.size, strict=True)]


# ImageNet


def test_tars_kaggle_and_folders_give_the_same_file(imagenet: Path) -> None:
    """Byte for byte, from a train tar that is read in place; the manifests name the classes for people."""
    folder = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    before = sorted(imagenet.rglob("*"))
    tar = written(
        imagenet / "out" / "tar.beton", "ilsvrc", imagenet / "train.tar", "--devkit", imagenet / "devkit.tar.gz"
    )
    assert sorted(imagenet.rglob("*")) == sorted([*before, tar.parent, tar, tar.with_name("tar.beton.json")])
    kaggles = written(imagenet / "kaggle.beton", "kaggle", imagenet / "kaggle", "--split", "train")
    folders = written(imagenet / "folder.beton", "imagefolder", folder)
    assert tar.read_bytes() == kaggles.read_bytes() == folders.read_bytes()
    assert read_dataset_manifest(tar).classes == list(WNIDS)
    assert read_dataset_manifest(tar).names == read_dataset_manifest(kaggles).names == list(NAMES)
    assert read_dataset_manifest(folders).names is None


def test_validation_labels_come_from_the_devkit(imagenet: Path) -> None:
    """By the images' names, whatever their order in the tar; as Kaggle's table has them."""
    source = ilsvrc(imagenet / "val.tar", imagenet / "devkit.tar.gz")
    other = kaggle(imagenet / "kaggle", "val")
    assert source.classes == other.classes == WNIDS
    assert source.names == other.names == NAMES
    assert source.labels.tolist() == other.labels.tolist() == [0, 0, 1, 1, 2, 2]
    names = [source.describe(i).rpartition("_")[2] for i in range(6)]
    assert names == [f"{number:08}.JPEG" for number in (1, 4, 2, 5, 3, 6)]
    for one, two in zip(source.images, other.images, strict=True):
        assert not isinstance(one, np.ndarray) and not isinstance(two, np.ndarray)
        assert read(one) == read(two)
    assert list(source.images[1:3]) == [source.images[1], source.images[2]]


def test_a_devkit_names_the_classes_without_children(imagenet: Path) -> None:
    """As scipy.io.loadmat and torchvision read it."""
    ids, truth = read_devkit(imagenet / "devkit.tar.gz")
    assert ids == {number: (wnid, name) for number, wnid, name in zip(NUMBERS, WNIDS, NAMES, strict=True)}
    assert truth == [2, 3, 1, 2, 3, 1]
    synsets = struct_array(META, "synsets")
    assert synsets["words"][3] == "entité"
    assert [values.tolist() for values in synsets["children"]] == [[], [], [], [1, 2]]


def test_a_damaged_devkit_is_refused_not_misread_in_silence() -> None:
    """Each byte of its matrix wrong, or cut: a ValueError, or what stands there, but never another exception."""
    random = np.random.default_rng(0)
    for position in range(126, len(META)):
        for content in (META[:position], META[:position] + random.bytes(1) + META[position + 1 :]):
            with contextlib.suppress(ValueError):
                struct_array(content, "synsets")
    with pytest.raises(ValueError, match="no struct array other"):
        struct_array(META, "other")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_are_read(format: int, tmp_path: Path) -> None:
    """Folders are passed over; names may be long, and none of ASCII where the format can hold them."""
    folder = "x" * 90
    name = f"{folder}/{'y' * 90}.JPEG" if format == tarfile.USTAR_FORMAT else f"{folder}/{'ü' * 150}.JPEG"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=format) as archive:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        add(archive, name, b"one")
        add(archive, "short.JPEG", b"two" * 1000)
    with tarfile.open(tmp_path / "train.tar", "w", format=format) as archive:
        add(archive, "n1.tar", inner.getvalue())
    source = ilsvrc(tmp_path / "train.tar")
    images = {source.describe(i): read(source.images[i]) for i in range(2)}  # type: ignore[arg-type]
    tar = tmp_path / "train.tar"
    assert images == {f"{tar}: {name}": b"one", f"{tar}: short.JPEG": b"two" * 1000}


def cut(imagenet: Path) -> tuple[str, str]:
    os.truncate(imagenet / "train.tar", (imagenet / "train.tar").stat().st_size // 2)
    return "train.tar", "cut short"


def without_end(imagenet: Path) -> tuple[str, str]:
    content = (imagenet / "train.tar").read_bytes().rstrip(b"\0")
    (imagenet / "train.tar").write_bytes(content + bytes(-len(content) % 512))
    return "train.tar", "cut short"


def flipped(imagenet: Path) -> tuple[str, str]:
    content = bytearray((imagenet / "train.tar").read_bytes())
    content[512 + 3] ^= 1  # in the first header of the first class's tar
    (imagenet / "train.tar").write_bytes(content)
    return f"{WNIDS[2]}.tar", "no tar file"


def no_tar(imagenet: Path) -> tuple[str, str]:
    (imagenet / "train.tar").write_bytes(b"<html>" * 200)
    return "train.tar", "no tar file"


def missing(imagenet: Path) -> tuple[str, str]:
    (imagenet / "train.tar").unlink()
    return "train.tar", "No such file"


def other_files(imagenet: Path) -> tuple[str, str]:
    with tarfile.open(imagenet / "train.tar", "w") as archive:
        add(archive, "readme.txt", b"hello")
    return "readme.txt", "neither a class's tar nor a JPEG"


def linked(imagenet: Path) -> tuple[str, str]:
    with tarfile.open(imagenet / "train.tar", "w") as archive:
        info = tarfile.TarInfo("n1.tar")
        info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
        archive.addfile(info)
    return "n1.tar", "link"


def empty_class(imagenet: Path) -> tuple[str, str]:
    with tarfile.open(imagenet / "train.tar", "w") as archive:
        add(archive, "n1.tar", bytes(10240))
    return "n1.tar", "holds no images"


@pytest.mark.parametrize(
    "spoil",
    [cut, without_end, flipped, no_tar, missing, other_files, linked, empty_class],
    ids=lambda spoil: spoil.__name__,
)
def test_a_damaged_tar_is_named_in_one_line(
    spoil: Callable[[Path], tuple[str, str]], imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    name, why = spoil(imagenet)
    assert main(["ilsvrc", str(imagenet / "train.tar"), "--out", str(imagenet / "out" / "x.beton")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert name in said and why in said
    assert not (imagenet / "out").exists()


def test_validation_images_without_their_labels_are_refused(imagenet: Path) -> None:
    """No devkit, one that is none, or one for other images."""
    val, devkit = imagenet / "val.tar", imagenet / "devkit.tar.gz"
    with pytest.raises(InputError, match="give --devkit"):
        ilsvrc(val)
    for content, why in ((b"no gzip", "cannot be read"), (devkit.read_bytes()[:-40], "cannot be read")):
        (imagenet / "other.tar.gz").write_bytes(content)
        with pytest.raises(InputError, match=f"other.tar.gz: {why}"):
            ilsvrc(val, imagenet / "other.tar.gz")
    for truth, why in ((b"1\n2\n", "has labels for 2"), (b"1\n2\n3\n1\n2\n9\n", "class 9"), (b"1\ncat\n", "'cat'")):
        with tarfile.open(devkit, "w:gz") as archive:
            add(archive, "data/meta.mat", META)
            add(archive, "data/ILSVRC2012_validation_ground_truth.txt", truth)
        with pytest.raises(InputError, match=why):
            ilsvrc(val, devkit)


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("LOC_synset_mapping.txt", "n01440764\n", "line 1"),
        ("LOC_synset_mapping.txt", "", "is empty"),
        ("LOC_synset_mapping.txt", "n01440764 tench\n", "n02012849 is not in both"),
        ("LOC_synset_mapping.txt", None, "No such file"),
    ],
)
def test_kaggles_files_must_fit_its_folders(file: str, content: str | None, why: str, imagenet: Path) -> None:
    """Else classes would be numbered otherwise in training than in validation."""
    path = imagenet / "kaggle" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=why):
        kaggle(imagenet / "kaggle", "train")


def test_a_wrong_solution_of_kaggles_is_named_by_its_line(imagenet: Path) -> None:
    """A class that is none, and a file of another kind."""
    path = imagenet / "kaggle" / "LOC_val_solution.csv"
    for content, why in (("ImageId,PredictionString\na,n9 1 2 3 4\n", "line 2"), ("hello\n", "does not begin with")):
        path.write_text(content)
        with pytest.raises(InputError, match=why):
            kaggle(imagenet / "kaggle", "val")


def test_a_subset_is_the_same_classes_in_training_and_validation(imagenet: Path) -> None:
    """Drawn by the seed; each class has as many images as were asked for, and keeps its name."""
    train = ilsvrc(imagenet / "train.tar", imagenet / "devkit.tar.gz")
    val = ilsvrc(imagenet / "val.tar", imagenet / "devkit.tar.gz")
    chosen = set()
    for seed in range(8):
        pilot = train.drawn(2, 3, seed)
        assert pilot.classes == val.drawn(2, None, seed).classes == train.drawn(2, None, seed).classes
        assert pilot.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert [dict(zip(WNIDS, NAMES, strict=True))[wnid] for wnid in pilot.classes] == list(pilot.names)
        for i, label in enumerate(pilot.labels):
            assert pilot.classes[label] in pilot.describe(i)
        chosen.add((pilot.classes, tuple(pilot.describe(i) for i in range(6))))
    assert len(chosen) > 3
    with pytest.raises(InputError, match="only 3 classes"):
        train.drawn(4, None, 0)
    with pytest.raises(InputError, match="n01440764 has only 2 images"):
        val.drawn(None, 3, 0)


def test_a_subset_is_written_down(imagenet: Path) -> None:
    """In the manifest's source, so that another one is not taken for it."""
    out = written(imagenet / "x.beton", "ilsvrc", imagenet / "train.tar", "--subset", 2, "--per-class", 3, "--seed", 4)
    manifest = read_dataset_manifest(out)
    assert manifest.histogram == [3, 3]
    assert manifest.source.endswith("train.tar, 2 classes and 3 images a class drawn by seed 4")
    arguments = ["ilsvrc", str(imagenet / "train.tar"), "--out", str(out), "--subset", "2", "--seed", "4"]
    assert main(arguments) == 1


# Stock FFCV in a process of its own: more than one Loader in a process is not safe.
READER = """
import sys, numpy as np
from ffcv.loader import Loader, OrderOption
from ffcv.fields.decoders import IntDecoder, CenterCropRGBImageDecoder
pipelines = {"image": [CenterCropRGBImageDecoder((32, 32), ratio=1)], "label": [IntDecoder()]}
order = OrderOption.SEQUENTIAL
loader = Loader(sys.argv[1], batch_size=7, num_workers=1, order=order, drop_last=False, pipelines=pipelines)
batches = [(images.copy(), labels.copy()) for images, labels in loader]
images, labels = (np.concatenate(column) for column in zip(*batches))
np.savez(sys.argv[2], images=images, labels=labels[:, 0])
"""


def test_stock_ffcv_reads_what_is_copied_and_what_is_left_out_is_no_gap(imagenet: Path) -> None:
    """A file of ILSVRC's tar, with each oddity and one empty image: FFCV's Loader gives right pixels and labels."""
    content = bytearray((imagenet / "train.tar").read_bytes())
    source = ilsvrc(imagenet / "train.tar")
    bad = source.images[5]
    assert not isinstance(bad, str | np.ndarray)
    content[bad.offset : bad.offset + bad.size] = bytes(bad.size)
    (imagenet / "train.tar").write_bytes(content)
    out = written(
        imagenet / "x.beton", "ilsvrc", imagenet / "train.tar", "--on-bad", "skip", "--no-shuffle", "--quality", 95
    )
    manifest = read_dataset_manifest(out)
    assert manifest.left_out == [{"image": source.describe(5), "why": "not an image that Pillow can read"}]
    assert manifest.image.copied > 10
    environment = os.environ | {"NUMBA_THREADING_LAYER": "omp"}
    arguments = [sys.executable, "-c", READER, str(out), str(imagenet / "x.npz")]
    subprocess.run(arguments, check=True, timeout=120, env=environment)
    with np.load(imagenet / "x.npz") as read_back:
        images, labels = read_back["images"], read_back["labels"]
    kept = [i for i in range(24) if i != 5]
    assert labels.tolist() == source.labels[kept].tolist()
    for sample, image in zip(kept, images, strict=True):
        seen = scaled(decode(read(source.images[sample])), 500)  # type: ignore[arg-type]
        side = min(seen.shape[:2])
        top, left = ((size - side) // 2 for size in seen.shape[:2])
        square = cv2.resize(seen[top : top + side, left : left + side], (32, 32), interpolation=cv2.INTER_AREA)
        assert psnr(image, np.asarray(square, np.uint8)) > 22, source.describe(sample)


# What is stored


@pytest.mark.parametrize("name", ODDITIES)
def test_oddities_come_out_as_right_rgb(name: str) -> None:
    """As a person sees them, within 30 dB where a JPEG lost something."""
    content, seen = ODDITIES[name]()
    pixels = scaled(decode(content), 500)
    assert pixels.shape == seen.shape
    assert psnr(pixels, seen) > 30


def test_oddities_are_stored_as_baseline_jpegs(tmp_path: Path) -> None:
    """All of them in one file, which decodes, close to what a person sees."""
    for name, make in ODDITIES.items():
        path = tmp_path / "images" / "only" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make()[0])
    out = written(tmp_path / "x.beton", "imagefolder", tmp_path / "images", "--no-shuffle", "--quality", 95)
    beton = open_beton(out, 1)
    with out.open("rb") as file:
        for sample, name in enumerate(sorted(ODDITIES)):
            seen = ODDITIES[name]()[1]
            pixels = beton.pixels(file.fileno(), sample)
            assert pixels.shape == seen.shape, name
            assert psnr(pixels, seen) > 24, name  # colors of CMYK's edges are halved in resolution
    assert read_dataset_manifest(out).image.copied == 0


def test_what_cannot_be_used_is_left_out_and_listed(imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty, cut, text: --on-bad skip goes on; the file holds the others, with their labels, and says so."""
    folder = imagenet / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    bad = {"a-empty": b"", "b-cut": encoded(smooth(60, 60))[:-300], "c-text": b"hello"}
    for name, content in bad.items():
        (folder / WNIDS[1] / f"{name}.JPEG").write_bytes(content)
    out = imagenet / "x.beton"
    arguments = ["imagefolder", str(folder), "--out", str(out)]
    assert main(arguments) == 1
    assert "--on-bad skip" in capsys.readouterr().err
    contents = set()
    for workers in (1, 3):
        assert main([*arguments, "--on-bad", "skip", "--workers", str(workers), "--force"]) == 0
        contents.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(contents) == 1
    assert "3 left out" in capsys.readouterr().out
    manifest = read_dataset_manifest(out)
    assert {Path(each["image"]).stem: each["why"] for each in manifest.left_out}.keys() == bad.keys()
    assert "the file is empty" in {each["why"] for each in manifest.left_out}
    assert manifest.histogram == [8, 8, 8]
    beton = open_beton(out, 3)
    assert len(beton) == manifest.samples == 24
    assert np.bincount(beton.labels).tolist() == [8, 8, 8]
    assert main(arguments) == 1  # a file without them is not what was asked for
    assert "left out of it" in capsys.readouterr().err
    for path in folder.rglob("*.JPEG"):
        path.write_bytes(b"")
    assert main([*arguments, "--on-bad", "skip", "--force"]) == 1
    assert "none of the images can be used" in capsys.readouterr().err
    assert read_dataset_manifest(out) == manifest


def test_a_failing_disk_is_no_bad_image() -> None:
    """--on-bad skip must not leave out what a network file system, or memory, fails to give."""
    for error in (OSError(errno.EIO, "x"), OSError(errno.ESTALE, "x"), OSError(errno.EACCES, "x"), MemoryError()):
        assert not is_bad_image(error)
    for bad in (
        OSError("image file is truncated"),
        FileNotFoundError(errno.ENOENT, "x"),
        InputError("x"),
        ValueError(),
    ):
        assert is_bad_image(bad)


def copies() -> dict[str, tuple[bytes, bool]]:
    """JPEGs, and whether they can be stored as they are."""
    exif = Image.Exif()
    exif[0x0110] = "camera"
    turned = Image.Exif()
    turned[0x0112] = 3
    plain = encoded(PICTURE)
    without_jfif = plain[:2] + plain[20:]
    return {
        "plain": (plain, True),
        "444": (encoded(PICTURE, subsampling=0), True),
        "camera": (encoded(PICTURE, exif=exif), True),
        "restarts": (encoded(PICTURE, restart_marker_blocks=2), True),
        "no-jfif": (without_jfif, True),
        "filled": (plain[:2] + b"\xff\xff" + plain[2:], True),
        "large": (encoded(smooth(60, 501)), False),
        "padded": (plain + bytes(2_000_000), False),  # longer than the largest image may be
        "turned": (encoded(PICTURE, exif=turned), False),
        "progressive": (encoded(PICTURE, progressive=True), False),
        "gray": (encoded(GRAY), False),
        "cmyk": (cmyk_jpeg()[0], False),
        "rgb": (adobe_rgb_jpeg()[0], False),
        "png": (encoded(PICTURE, "PNG"), False),
        "blocks-missing": (plain[:-200] + b"\xff\xd9", False),  # Pillow is content; libjpeg warns
    }


def test_small_baseline_jpegs_are_copied_byte_for_byte(tmp_path: Path) -> None:
    """And others are not; --reencode encodes all of them again."""
    files = copies()
    folder = tmp_path / "images"
    for name, (content, _) in files.items():
        (folder / "only").mkdir(parents=True, exist_ok=True)
        (folder / "only" / f"{name}.JPEG").write_bytes(content)
    out = written(tmp_path / "x.beton", "imagefolder", folder, "--no-shuffle")
    found = {name: content == files[name][0] for name, content in zip(sorted(files), stored(out), strict=True)}
    assert found == {name: copied for name, (_, copied) in files.items()}
    assert read_dataset_manifest(out).image.copied == 6
    again = written(tmp_path / "y.beton", "imagefolder", folder, "--no-shuffle", "--reencode")
    assert read_dataset_manifest(again).image.copied == 0
    assert not {content for content, _ in files.values()} & set(stored(again))
    for beton in (out, again):
        with beton.open("rb") as file:
            opened = open_beton(beton, 1)
            assert all(opened.pixels(file.fileno(), i).any() for i in range(len(opened)))
    arguments = ["imagefolder", str(folder), "--no-shuffle", "--out", str(out), "--reencode"]
    assert main(arguments) == 1  # another recipe


def test_jpegs_that_decoders_read_differently_are_not_copied() -> None:
    """Of each header with one thing changed: sampling, precision, kind of frame, scans, colors, no height."""
    plain = encoded(PICTURE)
    frame, scan = plain.index(b"\xff\xc0"), plain.index(b"\xff\xda")
    assert jpeg.baseline_size(plain) == (60, 80)
    adobe = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"
    start, without_jfif = plain[:2], plain[20:]
    assert jpeg.baseline_size(start + adobe + b"\x01" + without_jfif) == (60, 80)
    assert jpeg.baseline_size(start + adobe + b"\x00" + without_jfif) is None
    assert jpeg.baseline_size(start + adobe + b"\x00" + plain[2:]) == (60, 80)  # JFIF has the last word
    named = bytearray(start + without_jfif)
    for i, name in enumerate(b"RGB"):
        named[frame - 18 + 10 + 3 * i] = name
    assert jpeg.baseline_size(bytes(named)) is None
    for position, value in (
        *((frame + 11, 0x41), (frame + 11, 0x44), (frame + 14, 0x21), (frame + 17, 0x12)),  # sampling of Y, Cb, Cr
        *((frame + 4, 12), (frame + 1, 0xC1), (frame + 1, 0xC9), (frame + 9, 4), (scan + 4, 1)),
        *((frame + 3, 0), (scan, 0), (0, 0)),
    ):
        changed = bytearray(plain)
        changed[position] = value
        assert jpeg.baseline_size(bytes(changed)) is None, (position, value)
    no_lines = bytearray(plain)
    no_lines[frame + 5 : frame + 7] = b"\0\0"
    assert jpeg.baseline_size(bytes(no_lines)) is None
    for length in range(scan + 4):
        assert jpeg.baseline_size(plain[:length]) is None


def test_raw_pixels_are_never_copied_jpegs(tmp_path: Path) -> None:
    """Mode raw decodes them; what is stored is what Pillow sees."""
    (tmp_path / "images" / "only").mkdir(parents=True)
    (tmp_path / "images" / "only" / "a.JPEG").write_bytes(encoded(PICTURE))
    out = written(tmp_path / "x.beton", "imagefolder", tmp_path / "images", "--mode", "raw")
    assert stored(out) == [np.asarray(Image.open(io.BytesIO(encoded(PICTURE)))).tobytes()]


def test_a_proportion_is_drawn_by_seed_and_sample(tmp_path: Path) -> None:
    """A third of the images become JPEGs, the same ones for any order and number of workers."""
    (tmp_path / "images" / "only").mkdir(parents=True)
    for i in range(300):
        (tmp_path / "images" / "only" / f"{i:03}.png").write_bytes(encoded(smooth(8, 8 + i // 10, i), "PNG"))
    options = ["imagefolder", tmp_path / "images", "--mode", "proportion", "--compress-probability", "0.33"]
    modes = {}
    for name, more in {"one": [], "again": ["--workers", 3], "other": ["--seed", 1]}.items():
        assert main([*map(str, [*options, *more, "--no-shuffle", "--out", tmp_path / name])]) == 0
        modes[name] = open_beton(tmp_path / name, 1).mode.tolist()
    assert modes["one"] == modes["again"] != modes["other"]
    assert set(modes["one"]) == {JPEG, RAW}
    assert 70 < modes["one"].count(JPEG) < 130
    image = read_dataset_manifest(tmp_path / "other").image
    assert (image.mode, image.compress_probability, image.compress_seed) == ("proportion", 0.33, 1)
    assert main([*map(str, [*options, "--out", tmp_path / "one"]), "--seed", "1", "--no-shuffle"]) == 1


def test_an_older_manifest_is_still_read(imagenet: Path) -> None:
    """The keys that came later are not missed."""
    out = written(imagenet / "x.beton", "ilsvrc", imagenet / "train.tar")
    path = imagenet / "x.beton.json"
    content = json.loads(path.read_text())
    for key in ("names", "mean", "std", "page_size", "pages", "left_out"):
        del content[key]
    for key in ("reencode", "copied", "compress_probability", "compress_seed"):
        del content["image"][key]
    path.write_text(json.dumps(content))
    assert read_dataset_manifest(out, training=False).samples == 24
    path.write_text(json.dumps(content | {"sampels": 3}))
    with pytest.raises(ValueError, match="unknown"):
        read_dataset_manifest(out, training=False)


def test_statistics_are_those_of_the_pixels_whatever_the_number_of_workers(imagenet: Path) -> None:
    """Exact sums: mean and standard deviation are the same to the last digit; and right."""
    found = []
    for workers in (1, 3):
        out = imagenet / f"{workers}.beton"
        arguments = ["ilsvrc", str(imagenet / "train.tar"), "--mode", "raw", "--out", str(out)]
        assert main([*arguments, "--workers", str(workers)]) == 0
        found.append((read_dataset_manifest(out).mean, read_dataset_manifest(out).std))
    assert found[0] == found[1]
    values = np.frombuffer(b"".join(stored(out)), np.uint8).reshape(-1, 3) / 255
    np.testing.assert_allclose(found[0], [values.mean(axis=0), values.std(axis=0)], rtol=1e-12)


def test_a_source_counts_its_labels() -> None:
    """One for each image."""
    with pytest.raises(InputError, match="2 images have 1 labels"):
        Source(("a",), ["x", "y"], np.zeros(1, np.int64))
