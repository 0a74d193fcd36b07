"""The manifest of a data set: JSON beside the `.beton`, which `data_prep` writes and training and `jobs` read.

`train.beton.json` describes `train.beton`.  Standard library only: a login node reads it at every submission.
"""

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = "vit-beton-1"


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """How the images are stored."""

    mode: str  # "jpg", "raw", or "proportion": each as one of both
    max_resolution: int  # pixels; longer sides were scaled down to it
    quality: int | None  # of the JPEGs, 1 to 100; None if raw
    min_height: int  # pixels, of what is stored, as are the next three
    max_height: int
    min_width: int
    max_width: int
    reencode: bool | None = None  # JPEGs were never stored as they were; None if raw, or written before this was asked
    copied: int = 0  # images: JPEGs stored as they were
    compress_probability: float | None = None  # of an image to be a JPEG; None unless the mode is "proportion"
    compress_seed: int | None = None  # of that draw


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """The description of a `.beton` file; its fields are the keys of the JSON.  Those with a default came later."""

    format: str  # FORMAT
    file: str  # name, in the same folder
    bytes: int
    sha256: str  # hexadecimal, of the whole file
    samples: int
    classes: list[str]  # names, in the order of the labels
    histogram: list[int]  # samples of each class
    image: ImageInfo
    source: str  # where the images came from
    seed: int | None  # of the order of the samples; None if it is the source's
    versions: dict[str, str]  # of the libraries that wrote it
    names: list[str] | None = None  # of the classes, for people; None: `classes` are
    mean: list[float] | None = None  # of red, green and blue over all pixels, 0 to 1, before JPEGs lose some
    std: list[float] | None = None  # standard deviation, likewise
    page_size: int = 0  # bytes
    pages: list[str] = field(default_factory=list)  # SHA-256 of each part of `page_size` bytes; the last may be shorter
    left_out: list[dict[str, str]] = field(default_factory=list)  # images that could not be used: "image" and "why"


def manifest_path(beton: Path) -> Path:
    """`train.beton` -> `train.beton.json`."""
    return beton.with_name(f"{beton.name}.json")


def read_dataset_manifest(beton: Path, training: bool = True) -> DatasetManifest:
    """The manifest beside a `.beton`.  Raises ValueError that names the file and what to do.

    For training, the digests of the pages are required, and unknown keys, of a newer version, are ignored.  Otherwise
    manifests without page digests (older versions) are accepted, and an unknown key is an error.
    """
    path = manifest_path(beton)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = beton if not beton.exists() else path
        raise ValueError(f"{missing} does not exist; python -m data_prep.write_beton makes it") from None
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{path} is damaged ({error}); write the data set again") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; {FORMAT} is known")
    image = content.get("image")
    if not isinstance(image, dict):
        raise ValueError(f"{path} is damaged (no 'image'); write the data set again")
    known, known_of_image = _known(path, content, DatasetManifest), _known(path, image, ImageInfo)
    unknown = [*(content.keys() - known.keys()), *(image.keys() - known_of_image.keys())]
    if unknown and not training:
        raise ValueError(f"{path} is damaged (unknown key {sorted(unknown)[0]!r}); write the data set again")
    for name in ("page_size", "pages") if training else ():
        if not known.get(name):
            raise ValueError(f"{path} is damaged (no {name!r}); write the data set again")
    return DatasetManifest(**known | {"image": ImageInfo(**known_of_image)})


def _known(path: Path, content: dict[str, Any], kind: type[DatasetManifest] | type[ImageInfo]) -> dict[str, Any]:
    """The keys that this version knows.  Raises ValueError if one is missing."""
    for each in fields(kind):
        if each.name not in content and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{path} is damaged (no {each.name!r}); write the data set again")
    return {each.name: content[each.name] for each in fields(kind) if each.name in content}


def check_classes(beton: Path, num_classes: int) -> None:
    """Raises ValueError unless the model's head fits the data set."""
    classes = len(read_dataset_manifest(beton).classes)
    if classes != num_classes:
        raise ValueError(f"model.num_classes is {num_classes}, but {beton} has {classes} classes")
