"""The manifest next to a .beton, and the summary that the command prints."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.recipe import Recipe
from data_prep.sources.ignored import Ignored
from data_prep.sources.source import Source
from data_prep.summary import summarize
from data_prep.write_beton import main, write
from tests.helpers.image_files import image_folder, save_image, smooth
from tests.helpers.write_command import file_names, write_beton
from vit.data.dataset_manifest import read_dataset_manifest


def test_the_manifest_describes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its keys: digests, classes, settings, image sizes, pixel statistics.  The command prints a summary."""
    folder = image_folder(tmp_path / "images")
    save_image(folder / "cat" / "more.png", smooth(30, 30))
    out = tmp_path / "new" / "folder" / "train.beton"
    assert main(["imagefolder", str(folder), "--out", str(out), "--quality", "80", "--seed", "3"]) == 0
    manifest = json.loads((out.parent / "train.beton.json").read_text())
    versions = manifest.pop("versions")
    assert set(versions) == {"ffcv", "numpy", "pillow", "torchvision"}
    assert versions["numpy"] == np.__version__
    pages = manifest.pop("pages")
    content = out.read_bytes()
    assert pages == [hashlib.sha256(content[i : i + (8 << 20)]).hexdigest() for i in range(0, len(content), 8 << 20)]
    fingerprint = manifest.pop("fingerprint")
    assert (fingerprint["images"], set(fingerprint)) == ([4, 3], {"images", "bytes", "hashes", "stamps"})
    means, stds = np.array([manifest.pop("mean"), manifest.pop("std")])
    originals = np.concatenate([np.asarray(Image.open(path)).reshape(-1, 3) for path in folder.rglob("*.png")]) / 255
    np.testing.assert_allclose([means, stds], [originals.mean(0), originals.std(0)], rtol=1e-9)
    sizes = {"min_height": 20, "max_height": 30, "min_width": 30, "max_width": 50}
    defaults = {"reencode": False, "copied": 0, "compress_probability": None, "compress_seed": None}
    assert manifest == {
        "format": "vit-beton-1",
        "file": "train.beton",
        "bytes": out.stat().st_size,
        "sha256": hashlib.sha256(content).hexdigest(),
        "samples": 7,
        "classes": ["cat", "dog"],
        "histogram": [4, 3],
        "image": {"mode": "jpg", "max_resolution": 500, "quality": 80, **sizes, **defaults},
        "source": f"imagefolder {folder}",
        "seed": 3,
        "names": None,
        "page_size": 8 << 20,
        "left_out": [],
        "defects": {},
        "ignored": {},
        "empty_classes": [],
    }
    assert file_names(out.parent) == {"train.beton", "train.beton.json"}
    summary = capsys.readouterr().out
    assert str(out) in summary
    assert "7 samples" in summary
    assert "model.num_classes to 2" in summary


def test_what_a_source_has_ignored_is_printed_and_recorded(tmp_path: Path) -> None:
    """Each reason, with the count and the first names."""
    ignored = Ignored({"hidden": 1, "not images": 9}, {"hidden": (".DS_Store",), "not images": ("a", "b", "c")})
    source = Source(("a",), [smooth(8, 8)], np.zeros(1, np.int64), ignored=ignored)
    manifest = write(source, tmp_path / "x.beton", Recipe(source="here"), 1)
    assert read_dataset_manifest(tmp_path / "x.beton").ignored == ignored.manifest_entries()
    text = summarize("wrote", tmp_path / "x.beton", manifest, 1)
    assert "  ignored: 1 hidden: .DS_Store\n  ignored: 9 not images: a, b, c, …\n" in text


def test_the_manifest_records_the_choice_of_a_subset(imagenet: Path) -> None:
    """So a file with another subset is not mistaken for the one that was asked for."""
    options = ["--subset", 2, "--per-class", 3, "--seed", 4]
    out = write_beton(imagenet / "x.beton", "ilsvrc", imagenet / "train.tar", *options)
    manifest = read_dataset_manifest(out)
    assert manifest.histogram == [3, 3]
    assert manifest.source.endswith("train.tar, 2 classes and 3 images a class drawn by seed 4")
    assert main(["ilsvrc", str(imagenet / "train.tar"), "--out", str(out), "--subset", "2", "--seed", "4"]) == 1


def test_an_older_manifest_can_be_read(imagenet: Path) -> None:
    """Keys that were added to the format later may be missing; unknown keys are an error."""
    out = write_beton(imagenet / "x.beton", "ilsvrc", imagenet / "train.tar")
    path = imagenet / "x.beton.json"
    content = json.loads(path.read_text())
    for key in ("names", "mean", "std", "page_size", "pages", "left_out", "empty_classes", "fingerprint"):
        del content[key]
    for key in ("reencode", "copied", "compress_probability", "compress_seed"):
        del content["image"][key]
    path.write_text(json.dumps(content))
    assert read_dataset_manifest(out, training=False).samples == 24
    with pytest.raises(ValueError, match="no 'page_size'"):
        read_dataset_manifest(out)
    for wrong, message in (
        ({"sampels": 3}, "unknown key 'sampels'"),
        ({"image": content["image"] | {"quallity": 3}}, "unknown key 'quallity'"),
        ({"image": None}, "no 'image'"),
    ):
        path.write_text(json.dumps(content | wrong))
        with pytest.raises(ValueError, match=message):
            read_dataset_manifest(out, training=False)


def test_a_manifest_of_many_pages_is_read_in_milliseconds(imagenet: Path) -> None:
    """ImageNet has 17,000 pages, and a login node reads the manifest at every submission: ten reads in a second."""
    out = write_beton(imagenet / "x.beton", "ilsvrc", imagenet / "train.tar")
    path = imagenet / "x.beton.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pages": 17_000 * ["0" * 64]}))
    started = time.process_time()
    for _ in range(10):
        read_dataset_manifest(out)
    assert time.process_time() - started < 1
