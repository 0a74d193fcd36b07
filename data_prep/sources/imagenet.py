"""ImageNet (ILSVRC2012) as distributed: its two tar files, read in place, or Kaggle's folders.

Classes are the sorted WordNet ids ("n01440764"), numbered as torchvision does, and samples are sorted by class and
name.  So the tars, Kaggle's folders and an ImageFolder of the same images give the same samples in the same order.
"""

import csv
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from data_prep.sources.folders import FolderScan, image_folder
from data_prep.sources.ignored import Ignored, IgnoredCounter
from data_prep.sources.matlab import read_struct_array
from data_prep.sources.recognize import HIDDEN, NOT_IMAGES, has_image_suffix, is_hidden_path, is_image
from data_prep.sources.source import InputError, Source
from data_prep.sources.tar import Member, TarImages, list_members, open_tar

_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}\.jpe?g", re.IGNORECASE)
_WNID = re.compile(r"n\d{8}")
_INDEX_THREADS = 16  # concurrent reads hide the latency of a network file system


def ilsvrc(tar: Path, devkit: Path | None = None, synsets: Path | None = None) -> Source:
    """ILSVRC2012_img_train.tar, which contains one tar per class, or ILSVRC2012_img_val.tar, read in place.

    The validation labels come from `devkit`, ILSVRC2012_devkit_t12.tar.gz.  Class names come from `devkit` or from
    `synsets`, Kaggle's LOC_synset_mapping.txt.  Raises InputError if a file is missing, damaged or the wrong one.
    """
    ids = read_devkit(devkit)[0] if devkit else {}
    names = dict(ids.values()) | (read_synsets(synsets) if synsets else {})
    ignored = IgnoredCounter()
    with open_tar(tar) as descriptor:
        outer = _visible(list_members(descriptor, str(tar)), ignored)
        if not outer:
            raise InputError(f"{tar}: contains no files; give ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar")
        if all(_is_tar(member) for member in outer):
            with ThreadPoolExecutor(_INDEX_THREADS) as pool:
                labels = [f"{tar}: {member.name}" for member in outer]
                inner = list(pool.map(list_members, [descriptor] * len(outer), labels, outer))
            inner = [_images(descriptor, _visible(files, ignored), ignored) for files in inner]
            return _train_source(tar, outer, inner, names, ignored.result())
    for member in outer:
        if not _VAL_IMAGE.fullmatch(Path(member.name).name):
            what = f"{member.name} is neither the tar of a class nor a validation image ({_val_name(1)}.JPEG)"
            advice = "give ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar"
            if "/" in member.name.removeprefix("./"):
                advice += ", or unpack a tar of class folders and write it as imagefolder"
            raise InputError(f"{tar}: {what}; {advice}")
    if devkit is None:
        raise InputError(f"{tar}: has no labels of the validation images; add --devkit ILSVRC2012_devkit_t12.tar.gz")
    return _val_source(tar, outer, devkit, names, ignored.result())


def _is_tar(member: Member) -> bool:
    return member.name.lower().endswith(".tar")


def _visible(members: Sequence[Member], ignored: IgnoredCounter) -> list[Member]:
    """The members that are not hidden or made by a system; the others are counted."""
    visible = []
    for member in members:
        if is_hidden_path(member.name):
            ignored.add(HIDDEN, member.name)
        else:
            visible.append(member)
    return visible


def _images(descriptor: int, members: Sequence[Member], ignored: IgnoredCounter) -> list[Member]:
    """The members that are images by their names, or else by their content; the others are counted."""
    images = []
    for member in members:
        if has_image_suffix(member.name) or is_image(
            BytesIO(os.pread(descriptor, member.size, member.offset)), member.name
        ):
            images.append(member)
        else:
            ignored.add(NOT_IMAGES, member.name)
    return images


def _train_source(
    tar: Path, outer: Sequence[Member], inner: Sequence[list[Member]], names: dict[str, str], ignored: Ignored
) -> Source:
    images = {Path(each.name).stem: sorted(files) for each, files in zip(outer, inner, strict=True)}
    if len(images) < len(outer):
        raise InputError(f"{tar}: contains two tars for the same class; download it again")
    for wnid, files in images.items():
        if not files:
            raise InputError(f"{tar}: {wnid}.tar contains no images; download it again")
        for one, other in pairwise(files):
            if one.name == other.name:
                raise InputError(f"{tar}: {wnid}.tar contains {one.name} twice; download it again")
    wnids = sorted(images)
    labels = np.repeat(np.arange(len(wnids)), [len(images[wnid]) for wnid in wnids])
    tar_images = TarImages(tar, list(chain.from_iterable(images[wnid] for wnid in wnids)))
    return Source(tuple(wnids), tar_images, labels, _class_names(wnids, names), ignored)


def _val_source(tar: Path, outer: Sequence[Member], devkit: Path, names: dict[str, str], ignored: Ignored) -> Source:
    ids, ground_truth = read_devkit(devkit)
    if unknown := set(ground_truth) - set(ids):
        raise InputError(
            f"{devkit}: {_GROUND_TRUTH} contains class {min(unknown)}, which {_META} does not define; download it again"
        )
    truth = {_val_name(line): ids[number][0] for line, number in enumerate(ground_truth, 1)}
    # Sorted by the name without folders: a repacked tar gives the same order.
    files = sorted(outer, key=lambda member: _image_name(member.name))
    labeled = _check_images(str(tar), [file.name for file in files], truth, str(devkit))
    wnids = sorted(wnid for wnid, _ in ids.values())
    labels = np.searchsorted(wnids, labeled).astype(np.int64)
    order = np.argsort(labels, kind="stable")
    images = TarImages(tar, [files[i] for i in order])
    return Source(tuple(wnids), images, labels[order], _class_names(wnids, names), ignored)


def _val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08}"


def _image_name(path: str) -> str:
    """The name of an image without folders and suffix, by which the tables of labels call it."""
    return Path(path).stem


def _check_images(where: str, paths: Sequence[str], truth: Mapping[str, str], table: str) -> list[str]:
    """The WordNet id of each image by its name, whatever its folder; `truth` has the names of all images.

    Raises InputError if the images are not those of `truth`, once each, or if one is in the folder of another class.
    """
    found: dict[str, str] = {}
    wnids = []
    for path in paths:
        name = _image_name(path)
        if name not in truth:
            what = f"{path} has no label in {table}, which has labels for {len(truth):,} images"
            raise InputError(f"{where}: {what}; give the images and the labels of ILSVRC2012 as downloaded")
        if name in found:
            what = f"contains {name} twice, as {found[name]} and {path}"
            raise InputError(f"{where}: {what}; remove one of them")
        folder = Path(path).parent.name
        if _WNID.fullmatch(folder) and folder != truth[name]:
            what = f"{path} is in the folder of class {folder}, but by {table} its class is {truth[name]}"
            raise InputError(f"{where}: {what}; give the files as downloaded")
        found[name] = path
        wnids.append(truth[name])
    if missing := sorted(truth.keys() - found.keys()):
        others = f" and {len(missing) - 1:,} others are" if len(missing) > 1 else " is"
        what = f"{missing[0]}{others} missing; {table} has labels for {len(truth):,} images"
        raise InputError(f"{where}: {what}; give all images, as downloaded")
    return wnids


def read_devkit(path: Path) -> tuple[dict[int, tuple[str, str]], list[int]]:
    """ILSVRC2012_devkit_t12.tar.gz: class number -> (WordNet id, name), and the class number of each validation image.

    The classes are the synsets without children, as in torchvision's `parse_devkit_archive`.
    Raises InputError if the file is missing, damaged or not the devkit.
    """
    advice = "give ILSVRC2012_devkit_t12.tar.gz as downloaded"
    content = _read_devkit_files(path, advice)
    try:
        synsets = read_struct_array(content[_META], "synsets")
        columns = (synsets[field] for field in ("ILSVRC2012_ID", "WNID", "words", "num_children"))
        rows = list(zip(*columns, strict=True))
        ids = {int(number[0]): (str(wnid), str(words)) for number, wnid, words, children in rows if children[0] == 0}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path}: {_META} cannot be read ({error}); {advice}") from None
    lines = content[_GROUND_TRUTH].decode("ascii", "replace").split()
    if wrong := [line for line in lines if not line.isdigit()]:
        raise InputError(f"{path}: {_GROUND_TRUTH} contains {wrong[0]!r}, which is not a number; {advice}")
    return ids, [int(line) for line in lines]


def _read_devkit_files(path: Path, advice: str) -> dict[str, bytes]:
    """The contents of the devkit's two files of interest."""
    content: dict[str, bytes] = {}
    try:
        unpacked = gzip.decompress(path.read_bytes())  # checks the CRC-32 of the whole file
        with tarfile.open(fileobj=BytesIO(unpacked)) as archive:
            for member in archive:
                name = next((end for end in (_GROUND_TRUTH, _META) if member.name.endswith(end)), None)
                file = archive.extractfile(member) if name and member.isfile() else None
                if name and file:
                    content[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {advice}") from None
    for name in (_GROUND_TRUTH, _META):
        if name not in content:
            raise InputError(f"{path}: contains no {name}; {advice}")
    return content


def kaggle(root: Path, split: str) -> Source:
    """Kaggle's imagenet-object-localization-challenge, unpacked at `root`; `split` is "train" or "val".

    Reads `root`/LOC_synset_mapping.txt, for "val" also LOC_val_solution.csv, and the images below
    `root`/ILSVRC/Data/CLS-LOC.  Raises InputError if one of them is missing or damaged.
    """
    mapping = root / "LOC_synset_mapping.txt"
    names = read_synsets(mapping)
    wnids = sorted(names)
    folder = root / "ILSVRC" / "Data" / "CLS-LOC" / split
    if split == "train":
        source = image_folder(folder)
        if different := set(source.classes) ^ set(wnids):
            here, there = (folder, mapping) if min(different) in source.classes else (mapping, folder)
            raise InputError(f"{here}: class {min(different)} is missing in {there}; unpack Kaggle's archive again")
        return replace(source, names=_class_names(wnids, names))
    solution = root / "LOC_val_solution.csv"
    rows = list(csv.reader(_read_lines(solution)))
    if not rows or rows[0] != ["ImageId", "PredictionString"]:
        raise InputError(f"{solution}: does not start with ImageId,PredictionString; use the file from Kaggle")
    truth: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        wnid = row[1].split(" ")[0] if len(row) == 2 else ""
        if wnid not in names:
            raise InputError(f"{solution}: line {number} has no class of {mapping.name}; use the files from Kaggle")
        if row[0] in truth:
            raise InputError(f"{solution}: line {number} has {row[0]} a second time; use the file from Kaggle")
        truth[row[0]] = wnid
    scan = FolderScan(folder)
    paths = sorted(scan.images(str(folder)), key=_image_name)
    labeled = _check_images(str(folder), paths, truth, str(solution))
    labels = np.searchsorted(wnids, labeled).astype(np.int64)
    order = np.argsort(labels, kind="stable")
    images = [paths[i] for i in order]
    return Source(tuple(wnids), images, labels[order], _class_names(wnids, names), scan.ignored.result())


def read_synsets(path: Path) -> dict[str, str]:
    """Kaggle's LOC_synset_mapping.txt: WordNet id -> class name.  Raises InputError if it is missing or damaged."""
    names = {}
    for number, line in enumerate(_read_lines(path), 1):
        wnid, _, name = line.partition(" ")
        if not wnid or not name or wnid in names:
            raise InputError(f"{path}: line {number} is not a new WordNet id and its name; use the file from Kaggle")
        names[wnid] = name
    if not names:
        raise InputError(f"{path}: is empty; use the file from Kaggle")
    return names


def _class_names(wnids: Sequence[str], names: dict[str, str]) -> tuple[str, ...]:
    """The name of each class; its WordNet id if the name is unknown."""
    return tuple(names.get(wnid, wnid) for wnid in wnids)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({why}); use the files from Kaggle") from None
