"""Miniatures of published data sets, in the layout of their archives."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.image_files import Pixels, encode_image, noise, smooth
from tests.helpers.imagenet import add_member

NAMES = ("zebra", "ant", "mole")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

BREEDS = (("Abyssinian", 1), ("american_bulldog", 2), ("Bengal", 1))  # name, 1: cat or 2: dog


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar with these files; its folder is created.  `mode` "w:gz" compresses it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            add_member(archive, name, content)
    return path


def pets_files() -> dict[str, bytes]:
    """The contents of images.tar.gz and annotations.tar.gz: 3 breeds, 2 training and 1 test picture of each.

    As in the original, some .jpg files are a PNG or a GIF, and macOS has left files whose names start with ._.
    """
    files: dict[str, bytes] = {"images/Abyssinian_1.mat": b"MATLAB"}
    lists = {"trainval": "", "test": ""}
    for breed, (name, species) in enumerate(BREEDS, 1):
        for number in (1, 2, 10):
            kind = {"Abyssinian_2": "GIF", "Bengal_10": "PNG"}.get(f"{name}_{number}", "JPEG")
            files[f"images/{name}_{number}.jpg"] = encode_image(smooth(30 + number, 40, 10 * breed + number), kind)
            lists["test" if number == 10 else "trainval"] += f"{name}_{number} {breed} {species} {breed}\n"
            files[f"annotations/trimaps/._{name}_{number}.png"] = b"\0\5\x16\7"
    files["annotations/list.txt"] = b"#Image CLASS-ID SPECIES BREED ID\n"
    return files | {f"annotations/{name}.txt": text.encode() for name, text in lists.items()}


def write_pets_archives(folder: Path, files: Mapping[str, bytes]) -> None:
    """images.tar.gz and annotations.tar.gz in `folder`."""
    for top in ("images", "annotations"):
        content = {name: data for name, data in files.items() if name.startswith(f"{top}/")}
        write_tar(folder / f"{top}.tar.gz", content, "w:gz")


def food_files() -> dict[str, bytes]:
    """The contents of food-101.tar.gz: 3 classes, 2 training and 1 test picture of each."""
    names = {"apple_pie": "Apple pie", "baby_back_ribs": "Baby back ribs", "waffles": "Waffles"}
    files: dict[str, bytes] = {}
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label, name in enumerate(names):
        for number in (100, 7, 30):
            files[f"food-101/images/{name}/{number}.jpg"] = encode_image(smooth(30, 20 + label, number + label))
            lists["test" if number == 7 else "train"].setdefault(name, []).append(f"{name}/{number}")
    for split, entries in lists.items():
        lines = [line for each in entries.values() for line in each]
        files[f"food-101/meta/{split}.txt"] = "\n".join(lines).encode()
        files[f"food-101/meta/{split}.json"] = json.dumps(entries).encode()
    files["food-101/meta/classes.txt"] = "\n".join(names).encode() + b"\n"
    files["food-101/meta/labels.txt"] = "\n".join(names.values()).encode() + b"\n"
    return files


def pickled(entries: Mapping[str, object]) -> bytes:
    """A pickle as Python 2 wrote it."""
    file = io.BytesIO()
    pickle.dump(dict(entries), file, protocol=2)
    return file.getvalue()


def cifar_files(name: str) -> dict[str, bytes]:
    """The contents of cifar-10-python.tar.gz or cifar-100-python.tar.gz: 4 images in each batch."""

    def batch(seed: int, **labels: list[int]) -> bytes:
        return pickled({"data": noise(4, 1024, seed).reshape(4, 3072), "filenames": ["a.png"] * 4} | labels)

    if name == "cifar10":
        files = {f"data_batch_{i}": batch(i, labels=[i, 0, 9, i]) for i in range(1, 6)}
        files |= {"test_batch": batch(6, labels=[3, 2, 1, 0])}
        meta = {"label_names": ["airplane", *"bcdefghi", "truck"], "num_vis": 3072}
        return {f"cifar-10-batches-py/{file}": data for file, data in (files | {"batches.meta": pickled(meta)}).items()}
    files = {
        "train": batch(7, fine_labels=[0, 99, 5, 7], coarse_labels=[4, 13, 1, 2]),
        "test": batch(8, fine_labels=[1, 2, 3, 99], coarse_labels=[1, 14, 8, 13]),
    }
    meta = {
        "fine_label_names": [f"fine {i}" for i in range(100)],
        "coarse_label_names": [f"coarse {i}" for i in range(20)],
    }
    return {f"cifar-100-python/{file}": data for file, data in (files | {"meta": pickled(meta)}).items()}


def cifar_pixels(content: bytes) -> Pixels:
    """The images of a batch, computed plane by plane: (N, 32, 32, 3)."""
    planes = pickle.loads(content)["data"].reshape(-1, 3, 32, 32)
    return np.stack([planes[:, channel] for channel in range(3)], axis=-1)


def hub_file(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[object],
    names: Sequence[str] | None = NAMES,
    column: str = "label",
    image: str = "image",
    **options: Any,
) -> Path:
    """A file as `datasets` writes it: struct{bytes, path}, labels, and the names in the schema's metadata."""
    values = [each if each is None else {"bytes": each, "path": f"{i}.jpg"} for i, each in enumerate(images)]
    features: dict[str, object] = {image: {"_type": "Image"}, "id": {"dtype": "string", "_type": "Value"}}
    features[column] = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    table = pa.table(
        {"id": [f"id{i}" for i in range(len(values))], image: pa.array(values, IMAGE), column: pa.array(labels)}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **({"row_group_size": 4} | options))
    return path
