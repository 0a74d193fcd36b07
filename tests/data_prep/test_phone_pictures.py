"""A folder of phone pictures, screenshots and junk: all pictures with the right labels, and a list of the rest."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.beton_reader import read_beton_index
from data_prep.check_beton import main as check_beton
from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, save_bytes, smooth
from tests.helpers.odd_images import expected_pixels, odd_images
from tests.helpers.write_command import single_stderr_line, write_beton
from vit.data.dataset_manifest import read_dataset_manifest

CLASSES = ("beach", "birthday party", "Été 2024")
JUNK = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[x]",
    "._IMG_1.jpg": b"\0\5\x16\7",
    ".ipynb_checkpoints/IMG_2.jpg": encode_image(smooth(8, 8)),
    "__MACOSX/IMG_3.jpg": encode_image(smooth(8, 8)),
    "notes.txt": b"milk, eggs",
    "list.csv": b"a,b",
    "clip.mp4": b"\0\0\0\x18ftypmp42",
    "all.zip": b"PK\3\4",
    "x.pdf": b"%PDF-1.7",
}
ENDINGS = (".jpg", ".JPG", "", ".jpg?w=9", " (1).png", ".jpeg_large", " \N{SUNRISE}.jpg", "\n.jpg")
NO_MAGIC = ("TGA", "DIB", "IM")  # formats that only the suffix tells


def make_folder(root: Path) -> dict[str, bytes]:
    """Writes a third of the pictures for each class, named as phones, browsers and people name them, and junk."""
    pictures: dict[str, bytes] = {}
    for i, (kind, content) in enumerate(odd_images()):
        folder = CLASSES[i % 3] + ("/more/2023" if i % 5 == 0 else "")
        suffix = kind.partition("-")[0]
        ending = f".{suffix.lower()}" if suffix in NO_MAGIC else ENDINGS[i % len(ENDINGS)]
        pictures[f"{folder}/IMG_{i:04}{ending}"] = content
    for name, content in pictures.items():
        save_bytes(root / name, content)
    for name, content in JUNK.items():
        for folder in ("", *CLASSES):
            save_bytes(root / folder / name, content)
    (root / "beach" / "again").symlink_to(root / "beach")
    os.mkfifo(root / "beach" / "pipe.jpg")
    return pictures


def test_a_folder_of_phone_pictures_becomes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every picture is stored as Pillow shows it, with the label of its folder; the rest is counted and named."""
    root = tmp_path / "pictures"
    pictures = make_folder(root)
    out = write_beton(tmp_path / "out.beton", "imagefolder", root, "--mode", "raw", "--no-shuffle")
    summary = capsys.readouterr().out
    manifest = read_dataset_manifest(out)
    assert tuple(manifest.classes) == CLASSES
    wanted = Counter(name.partition("/")[0] for name in pictures)
    assert dict(zip(manifest.classes, manifest.histogram, strict=True)) == wanted
    index = read_beton_index(out, len(CLASSES))
    # In torchvision's order: by folder, then by name.
    order = sorted(pictures, key=lambda name: (name.partition("/")[0], os.path.split(name)))
    with out.open("rb") as file:
        for sample, name in enumerate(order):
            assert CLASSES[index.labels[sample]] == name.partition("/")[0], name
            assert np.array_equal(index.read_pixels(file.fileno(), sample), expected_pixels(pictures[name])), name
    counts = {reason: found["count"] for reason, found in manifest.ignored.items()}
    assert counts == {
        "hidden or system files and folders": 6 * 4,
        "files that are not in the folder of a class": 5,
        "files that are not images": 5 * 3,
        "pipes, sockets and devices": 1,
        "links to folders that are read already": 1,
    }
    for reason, count in counts.items():
        assert f"{count} {reason}: " in summary
    assert check_beton([str(out)]) == 0


def test_pictures_that_no_library_can_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A HEIC, a half-downloaded picture and an empty file end the command, or are left out with --on-bad skip."""
    half = encode_image(smooth(99, 99))
    bad = {"a.heic": b"\0\0\0\x18ftypheic", "b.jpg": half[: len(half) // 2], "c.jpg": b""}
    for name, content in {"0.jpg": half, **bad}.items():
        save_bytes(tmp_path / "in" / "beach" / name, content)
    assert main(["imagefolder", str(tmp_path / "in"), "--out", str(tmp_path / "x.beton"), "--no-shuffle"]) == 1
    assert "beach/a.heic: cannot be used: a HEIC image, which Pillow cannot read; convert it" in single_stderr_line(
        capsys
    )
    out = write_beton(tmp_path / "x.beton", "imagefolder", tmp_path / "in", "--on-bad", "skip")
    manifest = read_dataset_manifest(out)
    assert manifest.samples == 1
    assert sorted(Path(each["image"]).name for each in manifest.left_out) == sorted(bad)
    assert "3 images left out" in capsys.readouterr().out
