"""The class names that are stored with weights, and whether they are those of a data set.  Does not import torch."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, read_manifest
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.class_names import class_differences
from vit.data.dataset_manifest import read_dataset_manifest, short_names
from vit.run.folder import RunFolder

_NAME = "data.class_names"  # of the class names in --override-resume
_MAX_HEADER = 100_000_000  # bytes of a safetensors header, a limit of the format


@dataclass(frozen=True)
class DataSetClasses:
    """The classes of a training set, with its path for messages."""

    beton: Path
    classes: list[str]  # identifiers, as in the manifest
    names: list[str] | None = None  # readable names, if there are others


def check_class_names(run: RunFolder, cfg: Config, allowed_changes: Collection[str]) -> None:
    """Raises UserError if the training set has other classes than a run's checkpoint, unless that is allowed.

    Before there is a checkpoint: other classes than the pretrained head that the run would keep.  Raises OSError.
    """
    checkpoints = find_checkpoints(run.checkpoints)
    keeps_head = bool(cfg.init_from) and cfg.init_head == "keep"
    if not (checkpoints or keeps_head):
        return
    manifest = read_dataset_manifest(cfg.data.train)
    data_set = DataSetClasses(cfg.data.train, manifest.classes, manifest.names)
    for checkpoint in checkpoints:
        with suppress(DamagedCheckpointError):
            check_resumed_classes(checkpoint, read_manifest(checkpoint)["about"], data_set, allowed_changes)
            return
    if keeps_head:
        check_head_classes(Path(cfg.init_from), data_set)


def check_resumed_classes(
    checkpoint: Path, about: Mapping[str, Any], data_set: DataSetClasses, allowed_changes: Collection[str]
) -> None:
    """Compares the names in a checkpoint's metadata; the digest of the data, which is checked too, does not cover them.

    Raises UserError.
    """
    saved = None if _NAME in allowed_changes else _as_names(about.get("classes"))
    if saved is None:
        return
    if differences := class_differences(saved, data_set.classes, ("the checkpoint", data_set.beton.name)):
        raise UserError(
            f"{checkpoint} is of other classes than {data_set.beton} has: {differences}; use a new run folder, "
            f"or accept the change with --override-resume {_NAME} if only the names have changed"
        )


def check_head_classes(weights: Path, data_set: DataSetClasses) -> None:
    """Raises UserError if pretrained weights have a head for other classes, which the run would keep."""
    saved = saved_classes(weights)
    if saved is None or len(saved) != len(data_set.classes) or saved == data_set.names:
        return  # not known; the model gets a new head; exported with the readable names
    if differences := class_differences(saved, data_set.classes, short_names(weights, data_set.beton)):
        raise UserError(
            f"{weights} has a head for other classes than {data_set.beton}: {differences}; "
            "use --init_head new to start with a new head, or write the data set with the classes of the weights"
        )


def saved_classes(path: Path) -> list[str] | None:
    """The class names of a run folder, a checkpoint, or a file or folder that `vit.export` wrote; None if unknown.

    Those of a run are in each of its checkpoints; the newest intact one is used.  Raises OSError if a file cannot be
    read now.
    """
    if path.suffix == ".safetensors" and path.is_file():
        return _as_names(_safetensors_classes(path))
    if (path / "config.json").is_file():
        return _as_names(_timm_classes(path / "config.json"))
    checkpoints = RunFolder(path).checkpoints
    for checkpoint in find_checkpoints(checkpoints) if checkpoints.is_dir() else [path]:
        with suppress(DamagedCheckpointError):
            return _as_names(read_manifest(checkpoint)["about"].get("classes"))
    return None


def _timm_classes(config: Path) -> Any:
    """The class names in the config.json of a folder for timm."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        return content.get("label_names") or content["pretrained_cfg"]["label_names"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _safetensors_classes(path: Path) -> Any:
    """The class names in the header of a file that `vit.export` wrote."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            return json.loads(json.loads(file.read(min(size, _MAX_HEADER)))["__metadata__"]["classes"])
        except (ValueError, KeyError, TypeError):
            return None


def _as_names(found: Any) -> list[str] | None:
    """The class names, unless they are missing or only numbered, as `vit.export` writes them if they are not known."""
    if not isinstance(found, list) or not found or found == numbered_classes(len(found)):
        return None
    return [str(name) for name in found]


def numbered_classes(count: int) -> list[str]:
    """What classes are called whose names are not known."""
    return [f"class {i}" for i in range(count)]
