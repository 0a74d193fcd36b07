"""ImageNet (ILSVRC2012) as it is given out: its two tar files read in place, or Kaggle's folders.

Classes are the sorted WordNet ids ("n01440764"), as torchvision numbers them, and samples are sorted by class and
name.  So the tars, Kaggle's folders and an ImageFolder of the same images give the same samples in the same order.
"""

import csv
import gzip
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.folders import image_folder
from data_prep.sources.matlab import struct_array
from data_prep.sources.source import InputError, Slice, Source
from data_prep.sources.tar import Member, members, opened

_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_INDEXERS = 16  # threads; a network file system answers many questions at once


class TarImages(Sequence[Slice]):
    """Images in one tar: 1.3 million take 60 MB."""

    def __init__(self, path: Path, images: Sequence[Member]) -> None:
        self.path = str(path)
        self._names = np.array([image.name.encode("utf-8", "surrogateescape") for image in images], np.bytes_)
        self._places = np.array([image[1:] for image in images], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> list[Slice]: ...
    def __getitem__(self, index: int | slice) -> Slice | list[Slice]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        offset, size = self._places[index].tolist()
        return Slice(self.path, offset, size, self._names[index].decode("utf-8", "surrogateescape"))


def ilsvrc(tar: Path, devkit: Path | None = None, synsets: Path | None = None) -> Source:
    """ILSVRC2012_img_train.tar, which holds a tar for each class, or ILSVRC2012_img_val.tar, read in place.

    The labels of the latter come from `devkit`, ILSVRC2012_devkit_t12.tar.gz.  It gives the classes their names too, as
    does `synsets`, Kaggle's LOC_synset_mapping.txt.  Raises InputError if a file is missing, damaged or another one.
    """
    ids = read_devkit(devkit)[0] if devkit else {}
    names = dict(ids.values()) | (read_synsets(synsets) if synsets else {})
    with opened(tar) as descriptor:
        outer = members(descriptor, str(tar))
        if not outer:
            raise InputError(f"{tar}: holds no files; give ILSVRC2012's train or val tar")
        if all(_is_tar(member) for member in outer):
            with ThreadPoolExecutor(_INDEXERS) as pool:
                labels = [f"{tar}: {member.name}" for member in outer]
                inner = list(pool.map(members, [descriptor] * len(outer), labels, outer))
            return _train(tar, outer, inner, names)
    if strange := [member.name for member in outer if not member.name.lower().endswith((".jpeg", ".jpg"))]:
        raise InputError(f"{tar}: {strange[0]} is neither a class's tar nor a JPEG; give ILSVRC2012's train or val tar")
    if devkit is None:
        raise InputError(f"{tar}: the validation images have no labels; give --devkit ILSVRC2012_devkit_t12.tar.gz")
    return _val(tar, outer, devkit, names)


def _is_tar(member: Member) -> bool:
    return member.name.lower().endswith(".tar")


def _train(tar: Path, outer: Sequence[Member], inner: Sequence[list[Member]], names: dict[str, str]) -> Source:
    images = {Path(each.name).stem: sorted(files) for each, files in zip(outer, inner, strict=True)}
    if len(images) < len(outer):
        raise InputError(f"{tar}: holds two tars for a class; download it again")
    for wnid, files in images.items():
        if not files:
            raise InputError(f"{tar}: {wnid}.tar holds no images; download it again")
    wnids = sorted(images)
    labels = np.repeat(np.arange(len(wnids)), [len(images[wnid]) for wnid in wnids])
    listed = TarImages(tar, list(chain.from_iterable(images[wnid] for wnid in wnids)))
    return Source(tuple(wnids), listed, labels, _named(wnids, names))


def _val(tar: Path, outer: Sequence[Member], devkit: Path, names: dict[str, str]) -> Source:
    ids, truth = read_devkit(devkit)
    if len(outer) != len(truth):
        raise InputError(f"{tar}: holds {len(outer):,} images, and {devkit} has labels for {len(truth):,}")
    wnids = sorted(wnid for wnid, _ in ids.values())
    label = {number: wnids.index(wnid) for number, (wnid, _) in ids.items()}
    if wrong := set(truth) - set(label):
        raise InputError(f"{devkit}: {_TRUTH} names class {min(wrong)}, which {_META} does not know")
    files = sorted(outer)  # by name, which ends in the number of its line in the ground truth
    labels = np.array([label[number] for number in truth], np.int64)
    order = np.argsort(labels, kind="stable")
    return Source(tuple(wnids), TarImages(tar, [files[i] for i in order]), labels[order], _named(wnids, names))


def read_devkit(path: Path) -> tuple[dict[int, tuple[str, str]], list[int]]:
    """ILSVRC2012_devkit_t12.tar.gz: WordNet id and name of each class by number, and each validation image's number.

    The classes are the synsets without children, as in torchvision's `parse_devkit_archive`.
    Raises InputError if it is missing, damaged or another file.
    """
    advice = "give ILSVRC2012_devkit_t12.tar.gz as it was downloaded"
    content: dict[str, bytes] = {}
    try:
        whole = gzip.decompress(path.read_bytes())  # with its checksum
        with tarfile.open(fileobj=BytesIO(whole)) as archive:
            for member in archive:
                wanted = next((end for end in (_TRUTH, _META) if member.name.endswith(end)), None)
                file = archive.extractfile(member) if wanted and member.isfile() else None
                if wanted and file:
                    content[wanted] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {advice}") from None
    for wanted in (_TRUTH, _META):
        if wanted not in content:
            raise InputError(f"{path}: holds no {wanted}; {advice}")
    try:
        synsets = struct_array(content[_META], "synsets")
        columns = (synsets[field] for field in ("ILSVRC2012_ID", "WNID", "words", "num_children"))
        rows = list(zip(*columns, strict=True))
        ids = {int(number[0]): (str(wnid), str(words)) for number, wnid, words, children in rows if children[0] == 0}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path}: {_META} is not the devkit's ({error}); {advice}") from None
    lines = content[_TRUTH].decode("ascii", "replace").split()
    if wrong := [line for line in lines if not line.isdigit()]:
        raise InputError(f"{path}: {_TRUTH} has a line {wrong[0]!r}, which is no number; {advice}")
    return ids, [int(line) for line in lines]


def kaggle(root: Path, split: str) -> Source:
    """Kaggle's imagenet-object-localization-challenge, unpacked at `root`; `split` is "train" or "val".

    Reads `root`/LOC_synset_mapping.txt, for "val" LOC_val_solution.csv too, and the images below
    `root`/ILSVRC/Data/CLS-LOC.  Raises InputError if one of them is missing or damaged.
    """
    names = read_synsets(root / "LOC_synset_mapping.txt")
    wnids = sorted(names)
    folder = root / "ILSVRC" / "Data" / "CLS-LOC" / split
    if split == "train":
        source = image_folder(folder)
        if different := set(source.classes) ^ set(wnids):
            raise InputError(f"{folder}: {min(different)} is not in both, this folder and LOC_synset_mapping.txt")
        return Source(source.classes, source.images, source.labels, _named(wnids, names))
    solution = root / "LOC_val_solution.csv"
    rows = list(csv.reader(_lines(solution)))
    if not rows or rows[0] != ["ImageId", "PredictionString"]:
        raise InputError(f"{solution}: does not begin with ImageId,PredictionString; give Kaggle's own file")
    images: list[tuple[int, str]] = []
    for number, row in enumerate(rows[1:], 2):
        wnid = row[1].split(" ")[0] if len(row) == 2 else ""
        if wnid not in names:
            raise InputError(f"{solution}: line {number} names no class of LOC_synset_mapping.txt")
        images.append((wnids.index(wnid), str(folder / f"{row[0]}.JPEG")))
    images.sort()
    labels: NDArray[np.int64] = np.array([label for label, _ in images], np.int64)
    return Source(tuple(wnids), [path for _, path in images], labels, _named(wnids, names))


def read_synsets(path: Path) -> dict[str, str]:
    """Kaggle's LOC_synset_mapping.txt: the names of the classes by WordNet id.  Raises InputError if it is not one."""
    names = {}
    for number, line in enumerate(_lines(path), 1):
        wnid, _, name = line.partition(" ")
        if not wnid or not name or wnid in names:
            raise InputError(f"{path}: line {number} is not a WordNet id and a name; give Kaggle's own file")
        names[wnid] = name
    if not names:
        raise InputError(f"{path}: is empty; give Kaggle's own file")
    return names


def _named(wnids: Sequence[str], names: dict[str, str]) -> tuple[str, ...]:
    return tuple(names.get(wnid, wnid) for wnid in wnids)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the folder or file that Kaggle gives out") from None
