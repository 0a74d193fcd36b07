"""The manifest of a data set: a JSON file next to the `.beton`, written by `data_prep`, read by training and `jobs`.

`train.beton.json` describes `train.beton`; its keys are the fields of `DatasetManifest`.  This module uses only the
standard library, so that a login node can read the manifest quickly at every submission.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from vit.config.paths import shell_word
from vit.config.user_error import UserError
from vit.data.class_names import class_differences
from vit.run.counts import counted
from vit.run.disk_errors import naming
from vit.run.hints import command

FORMAT = "vit-beton-1"
DESCRIBED = "an existing file, described by data_prep.describe_beton"  # the source of a file that another program wrote
_MAX_LINKS = 40  # in a chain, as in Linux


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """How the images are stored."""

    mode: str  # "jpg", "raw", or "proportion": each image is either
    max_resolution: int  # pixels; images with a longer side were scaled down to this
    quality: int | None  # JPEG quality, 1 to 100; None if raw, or not known
    min_height: int  # smallest and largest size of the stored images, in pixels
    max_height: int
    min_width: int
    max_width: int
    reencode: bool | None = None  # whether every source JPEG was encoded again; None if raw, or not recorded
    copied: int = 0  # number of source JPEGs that were stored unchanged
    compress_probability: float | None = None  # probability that an image is a JPEG; None unless mode is "proportion"
    compress_seed: int | None = None  # seed of that draw


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """The description of a `.beton` file.  Fields with a default may be missing in the JSON file."""

    format: str  # FORMAT
    file: str  # name under which the .beton file was written; a copy or a link may have another
    bytes: int  # its size
    sha256: str  # its digest, hexadecimal
    samples: int  # number of samples
    classes: list[str]  # identifier of each class, in the order of the labels: a WordNet id, the name of a folder
    histogram: list[int]  # number of samples of each class
    image: ImageInfo
    source: str  # where the images came from
    seed: int | None  # seed of the order of the samples; None: the order of the source
    versions: dict[str, str]  # versions of the libraries that wrote the file
    names: list[str] | None = None  # readable name of each class; None: `classes` are readable
    mean: list[float] | None = None  # of red, green and blue over all pixels, 0 to 1, before JPEG compression if known
    std: list[float] | None = None  # their standard deviation
    page_size: int = 0  # bytes; as in the file's header
    pages: list[str] = field(default_factory=list)  # SHA-256 of each page of `page_size` bytes; the last may be shorter
    left_out: list[dict[str, str]] = field(default_factory=list)  # source images that were skipped: "image" and "why"
    defects: dict[str, int] = field(default_factory=dict)  # stored images with each kind of harmless defect
    # Files and folders of the source that were not taken for images: by reason, their "count" and a few "examples".
    ignored: dict[str, dict[str, Any]] = field(default_factory=dict)
    empty_classes: list[str] = field(default_factory=list)  # those of `classes` that have no samples
    # Of each class, what tells later whether its source images have changed: see data_prep/sources/fingerprint.py.
    fingerprint: dict[str, list[Any]] | None = None


def manifest_path(beton: Path) -> Path:
    """The path of a `.beton` file's manifest: `train.beton` -> `train.beton.json`.

    If `beton` is a link: the manifest beside the link, which somebody put there for it, else the one beside the file
    that it links to.
    """
    candidates = [path.with_name(f"{path.name}.json") for path in link_chain(beton)]
    return next((path for path in candidates if os.path.lexists(path)), candidates[0])


def link_chain(path: Path) -> list[Path]:
    """The path, the path that it links to if it is a symbolic link, and so on."""
    chain = [path]
    while os.path.islink(chain[-1]) and len(chain) <= _MAX_LINKS:
        chain.append(chain[-1].parent / os.readlink(chain[-1]))
    return chain


def _advice() -> str:
    """What to do about a manifest that cannot be used."""
    return f"copy it again, or move it away and make a new one with {command('data_prep.describe_beton')}"


def read_dataset_manifest(beton: Path, training: bool = True) -> DatasetManifest:
    """Reads the manifest of a `.beton` file.  Raises UserError that names the manifest, the problem and what to do.

    For training, the digests of the pages are required, and unknown keys, of a newer version, are ignored.  Otherwise
    manifests without page digests (older versions) are accepted, and an unknown key is an error.
    """
    path = manifest_path(beton)
    try:
        with naming(path):
            content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if text := missing_file(beton):
            raise UserError(text) from None
        raise
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path} is damaged ({error}); {_advice()}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} has format {found!r}, but this version reads only {FORMAT}; {_advice()}")
    image = content.get("image")
    if not isinstance(image, dict):
        raise UserError(f"{path} is damaged (no 'image'); {_advice()}")
    known, known_of_image = (_known_fields(path, *pair) for pair in ((content, DatasetManifest), (image, ImageInfo)))
    unknown = [*(content.keys() - known.keys()), *(image.keys() - known_of_image.keys())]
    if unknown and not training:
        raise UserError(f"{path} is damaged (unknown key {sorted(unknown)[0]!r}); {_advice()}")
    for name in ("page_size", "pages") if training else ():
        if not known.get(name):
            raise UserError(f"{path} is damaged (no {name!r}); {_advice()}")
    return DatasetManifest(**known | {"image": ImageInfo(**known_of_image)})


def missing_file(beton: Path) -> str:
    """What does not exist of a data set, and the command that makes it; "" if nothing is missing.  Raises OSError."""
    path = manifest_path(beton)
    published = _published_source(beton)
    write = command("data_prep.write_beton", *(published or ["imagefolder", "FOLDER"]), "--out", shell_word(beton))
    if not beton.exists():
        if path.exists():
            return f"{beton} does not exist, but its manifest does; copy it again, or write it anew with {write}"
        origin = "" if published else " from a folder of images"
        return f"{beton} does not exist; {write} creates it{origin} (--help lists other sources)"
    if path.exists():
        return ""
    if beton.is_dir():
        make = command("data_prep.write_beton", "imagefolder", shell_word(beton), "--out", "FILE")
        return f"{beton} is a folder; make a .beton file of its images first: {make}"
    if beton.suffix != ".beton":
        return f"{beton} is not a .beton file; {write} makes one from a folder of images (--help lists other sources)"
    return (
        f"{path} does not exist; if {beton.name} was copied, copy its manifest too; if another program wrote it "
        f"with FFCV, {command('data_prep.describe_beton', shell_word(beton))} makes the manifest"
    )


def _published_source(beton: Path) -> list[str]:
    """What to give `write_beton` for a file of the recipes, which have published data sets; nothing for other files."""
    folder, (target, _, split) = beton.parent, beton.stem.rpartition("-")
    if beton.suffix != ".beton" or split not in ("train", "val"):
        return []
    if target not in (("species", "breed") if folder.name == "pets" else ("",)):
        return []
    match folder.name:
        case "imagenet":
            return ["ilsvrc", f"ILSVRC2012_img_{split}.tar", "--devkit", "ILSVRC2012_devkit_t12.tar.gz"]
        case "fashion-mnist":
            return ["fashion-mnist", "--split", split]
        case "pets":
            return ["oxford-pets", "--root", shell_word(folder), "--target", target, "--split", split]
    return []


def missing_files(betons: Iterable[Path]) -> list[str]:
    """What does not exist of data sets, one line for each of them that is not complete.  Raises OSError."""
    return [text for beton in dict.fromkeys(betons) if (text := missing_file(beton))]


def _known_fields(path: Path, content: dict[str, Any], cls: type[Any]) -> dict[str, Any]:
    """The entries that are fields of `cls`; others are ignored.  Raises UserError if a required one is missing."""
    for each in fields(cls):
        if each.name not in content and each.default is MISSING and each.default_factory is MISSING:
            raise UserError(f"{path} is damaged (no {each.name!r}); {_advice()}")
    return {each.name: content[each.name] for each in fields(cls) if each.name in content}


def check_classes(beton: Path, classes: Sequence[str], num_classes: int) -> None:
    """Raises UserError if a data set, with these classes, does not have `num_classes` of them."""
    if (found := len(classes)) != num_classes:
        raise UserError(
            f"model.num_classes is {num_classes}, but {beton} has {counted(found, 'class')}; "
            f"set model.num_classes to {found}"
        )


def check_data_sets(num_classes: int, first: Path, *others: Path) -> None:
    """Raises UserError unless the first data set has `num_classes` classes, and the others the same ones in order.

    The error names everything that is missing.
    """
    if missing := missing_files((first, *others)):
        lines = missing if len(missing) == 1 else ["files are missing:", *missing]
        raise UserError("\n  ".join(lines))
    classes = read_dataset_manifest(first).classes
    check_classes(first, classes, num_classes)
    for other in others:
        if differences := class_differences(classes, read_dataset_manifest(other).classes, short_names(first, other)):
            raise UserError(
                f"{other} has other classes than {first}: {differences}; write both from the same folders of classes, "
                "with the same --subset and --seed"
            )


def short_names(one: Path, other: Path) -> tuple[str, str]:
    """The names of two files for a message, without their folders if these are not needed to tell them apart."""
    return (one.name, other.name) if one.name != other.name else (str(one), str(other))
