"""The JSON file beside a `.beton`, which `data_prep` writes: all that a login node needs to know of a data set."""

import json
from pathlib import Path
from typing import Any


def manifest_path(path: Path) -> Path:
    """`train.beton` -> `train.beton.json`."""
    return path.with_name(path.name + ".json")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a `.beton`.  Raises ValueError that names the file and what to do."""
    try:
        manifest = json.loads(manifest_path(path).read_text())
    except FileNotFoundError:
        missing = path if not path.exists() else manifest_path(path)
        raise ValueError(f"{missing} does not exist; python -m data_prep.write_beton makes it") from None
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{manifest_path(path)} is damaged ({error}); write the data set again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != "vit-beton-1":
        raise ValueError(f"{manifest_path(path)} has format {found!r}; vit-beton-1 is known")
    if missing := {"bytes", "sha256", "samples", "classes", "page_size", "pages"} - manifest.keys():
        raise ValueError(f"{manifest_path(path)} is damaged (no {sorted(missing)[0]!r}); write the data set again")
    return dict(manifest)


def check_classes(path: Path, num_classes: int) -> None:
    """Raises ValueError unless the model's head fits the data set."""
    classes = len(read_manifest(path)["classes"])
    if classes != num_classes:
        raise ValueError(f"model.num_classes is {num_classes}, but {path} has {classes} classes")
