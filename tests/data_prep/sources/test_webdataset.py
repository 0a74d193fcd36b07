"""WebDataset's shards: tar files of images and labels."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset as library

from data_prep.sources.source import InputError, Source, read_image_file
from data_prep.sources.webdataset import webdataset
from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, smooth
from tests.helpers.published_data import write_tar
from tests.helpers.write_command import single_stderr_line, stored_images, write_beton
from vit.data.dataset_manifest import read_dataset_manifest

PICTURES = [encode_image(smooth(20 + i, 30, i)) for i in range(6)]


def contents(source: Source) -> list[bytes]:
    return [read_image_file(image) for image in source.images if not isinstance(image, np.ndarray)]


def test_shards_give_their_images_and_labels_in_stored_order(tmp_path: Path) -> None:
    """Named with braces, as a folder, by a pattern, or one by one; keys end at the first dot, in folders too."""
    kinds = ("jpg", "jpeg", "png", "webp", "JPG", "jpg")
    for shard in range(3):
        files: dict[str, bytes] = {}
        for i in (2 * shard, 2 * shard + 1):
            key = ("a", "./train/v1.0/b")[i % 2]  # the same keys in each shard
            files |= {f"{key}.{kinds[i]}": PICTURES[i], f"{key}.cls": f"{i % 3}\n".encode(), f"{key}.caption.txt": b"x"}
        write_tar(tmp_path / f"t-{shard:06}.tar", files)
    for patterns in (
        ["t-{000000..000002}.tar"],
        ["."],
        ["t-*.tar"],
        [f"t-00000{i}.tar" for i in range(3)],
        ["t-00000{0,1,2}.tar"],
    ):
        source = webdataset([str(tmp_path / pattern) for pattern in patterns])
        assert source.classes == ("0", "1", "2")
        assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert contents(source) == PICTURES
    backward = webdataset([str(tmp_path / "t-{000002..000000}.tar")])
    assert contents(backward) == [PICTURES[i] for i in (4, 5, 2, 3, 0, 1)]
    assert source.describe(1) == f"{tmp_path}/t-000000.tar: ./train/v1.0/b.jpeg"
    out = write_beton(tmp_path / "x.beton", "webdataset", tmp_path / "t-{000000..000002}.tar", "--no-shuffle")
    assert [stored_images(out)[i] for i in (0, 1, 4, 5)] == [PICTURES[i] for i in (0, 1, 4, 5)]
    assert read_dataset_manifest(out).histogram == [2, 2, 2]


def test_the_library_of_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    files = {f"s{i}.{end}": data for i in range(4) for end, data in (("jpg", PICTURES[i]), ("cls", b"%d" % i))}
    shard = str(write_tar(tmp_path / "a.tar", files))
    theirs = list(library.WebDataset(shard, shardshuffle=False))
    source = webdataset([shard])
    assert contents(source) == [each["jpg"] for each in theirs]
    assert source.labels.tolist() == [int(each["cls"]) for each in theirs]


def test_labels_may_be_names_numbers_or_entries_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers keep their value, names are sorted, --classes gives both their order; a gap in the numbers is told."""

    def shard(labels: list[object], kind: str = "cls") -> list[str]:
        files: dict[str, bytes] = {}
        for i, label in enumerate(labels):
            text = json.dumps(label) if kind == "json" else str(label)
            files |= {f"{i}.{kind}": text.encode(), f"{i}.jpg": PICTURES[i]}
        return [str(write_tar(tmp_path / "a.tar", files))]

    source = webdataset(shard(["mole", " ant ", "mole"]))
    assert (source.classes, source.labels.tolist()) == (("ant", "mole"), [1, 0, 1])
    source = webdataset(shard(["10", "cat", "9"]))
    assert (source.classes, source.labels.tolist()) == (("10", "9", "cat"), [0, 2, 1])
    source = webdataset(shard(["007", "+7", "7", "x"]))
    assert (source.classes, source.labels.tolist()) == (("+7", "007", "7", "x"), [1, 0, 2, 3])
    source = webdataset(shard([{"label": 3}, {"label": 1}], "json"))
    assert (source.classes, source.labels.tolist()) == (("0", "1", "2", "3"), [3, 1])
    assert "no sample has label 0, 2;" in single_stderr_line(capsys)
    source = webdataset(shard([{"id": "x", "label": 0}, {"id": "a"}], "json"), "id")
    assert (source.classes, source.labels.tolist()) == (("a", "x"), [1, 0])
    for text in ("mole\nant\nbee\n", "\ufeffmole\r\nant\r\nbee", '["mole", "ant", "bee"]'):
        (tmp_path / "classes.txt").write_text(text)
        source = webdataset(shard(["ant", "mole"]), classes=tmp_path / "classes.txt")
        assert (source.classes, source.labels.tolist()) == (("mole", "ant", "bee"), [1, 0])
    source = webdataset(shard([2, 0]), classes=tmp_path / "classes.txt")
    assert (source.classes, source.labels.tolist()) == (("mole", "ant", "bee"), [2, 0])
    with pytest.raises(InputError, match="label 3 is not in 0 to 2"):
        webdataset(shard([3]), classes=tmp_path / "classes.txt")
    (tmp_path / "digits.txt").write_text("1\n3\n5\n")
    with pytest.raises(InputError, match="label 1 may be class number 1, which is called 3, or the class 1"):
        webdataset(shard([1]), classes=tmp_path / "digits.txt")
    with pytest.raises(InputError, match="'wasp' is not one of the 3 classes"):
        webdataset(shard(["wasp"]), classes=tmp_path / "classes.txt")
    for names in (b"", b"a\na\n", b"a\n\nb\n", b"\xff\n"):
        (tmp_path / "classes.txt").write_bytes(names)
        with pytest.raises(InputError, match=r"classes\.txt"):
            webdataset(shard([0]), classes=tmp_path / "classes.txt")


def test_bad_shards_and_labels_are_named(tmp_path: Path) -> None:
    """Compressed, truncated, with an image but no label, with the same file twice, or without images."""
    shard = tmp_path / "a.tar"
    good = {"x.jpg": PICTURES[0], "x.cls": b"0"}
    whole = write_tar(shard, good).read_bytes()
    for content, message in (
        (gzip.compress(whole), "is compressed with gzip, so it cannot be read in place; decompress it"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed with zstd"),
        (whole[:700], "is truncated"),
        (b"hello" * 300, "is not a tar"),
    ):
        shard.write_bytes(content)
        with pytest.raises(InputError, match=rf"a\.tar: {message}"):
            webdataset([str(shard)])
    for files, message in (
        ({"x.jpg": PICTURES[0], "y.cls": b"0"}, "sample x has an image but no x.cls or x.json"),
        ({"x.jpg": PICTURES[0], "x.json": b"{}"}, "x.json: has no entry 'label', see --label-key"),
        ({"x.jpg": PICTURES[0], "x.json": b"{"}, "x.json: cannot be read"),
        ({"x.jpg": PICTURES[0], "x.json": b"[1]"}, "x.json: cannot be read"),
        ({"x.jpg": PICTURES[0], "x.json": b'{"label": 1.5}'}, "x.json: '1.5' is not a label"),
        ({"x.jpg": PICTURES[0], "x.json": b'{"label": true}'}, "x.json: 'True' is not a label"),
        ({"x.jpg": PICTURES[0], "x.json": b'{"label": 1%s}' % (b"0" * 30)}, "is not a label"),
        ({"x.jpg": PICTURES[0], "x.cls": b""}, "x.cls: '' is not a label"),
        ({"x.jpg": PICTURES[0], "x.cls": b"\xff"}, "x.cls: cannot be read"),
        ({"x.jpg": PICTURES[0], "x.cls": b"-1"}, "label -1"),
        ({"x.jpg": PICTURES[0], "x.cls": b"12345678"}, "label 12345678 is not in"),
        (good | {"x.png": PICTURES[0]}, "x.jpg and x.png are images of the same sample"),
        (good | {"x.JPG": PICTURES[0]}, "contains x.JPG twice"),
        ({"x.cls": b"0", "readme": b""}, "contains no image"),
    ):
        write_tar(shard, files)
        with pytest.raises(InputError, match=message):
            webdataset([str(shard)])
    (tmp_path / "empty").mkdir()
    for pattern, message in (
        ("b-{0..1}.tar", r"b-0\.tar: no such file"),
        ("empty", "contains no .tar file"),
        ("*.tgz", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            webdataset([str(tmp_path / pattern)])


def test_images_of_every_format_are_taken(tmp_path: Path) -> None:
    """By the last extension; one with a further dot, such as a mask, belongs to a sample, but is not its image."""
    kinds = ("gif", "bmp", "tiff", "ppm", "AVIF")
    files: dict[str, bytes] = {}
    for i, kind in enumerate(kinds):
        picture = encode_image(smooth(20 + i, 30, i), kind.upper())
        files |= {f"{i}.{kind}": picture, f"{i}.mask.png": PICTURES[0], f"{i}.cls": b"%d" % i}
    source = webdataset([str(write_tar(tmp_path / "a.tar", files))])
    assert [Path(source.describe(i)).suffix for i in range(5)] == [f".{kind}" for kind in kinds]
    assert source.labels.tolist() == [0, 1, 2, 3, 4] and not source.ignored.counts


def test_samples_without_an_image_are_left_out_and_counted(tmp_path: Path) -> None:
    """And files that belong to no sample, such as those of macOS."""
    shards = [
        write_tar(
            tmp_path / f"{name}.tar",
            {"x.jpg": PICTURES[0], "x.cls": b"0", "y.cls": b"0", "._x.jpg": b"", "__MACOSX/x.jpg": b"", "readme": b""},
        )
        for name in "ab"
    ]
    source = webdataset(list(map(str, shards)))
    assert len(source.labels) == 2
    assert source.ignored.counts == {
        "hidden or system files and folders": 4,
        "files that are not KEY.EXTENSION": 2,
        "samples without an image": 2,
    }
    assert source.ignored.examples["samples without an image"] == tuple(f"{shard}: y" for shard in shards)


def test_a_damaged_image_in_a_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the shard and the file in it."""
    shard = write_tar(tmp_path / "a.tar", {"x/1.jpg": b"no image", "x/1.cls": b"0"})
    assert main(["webdataset", str(shard), "--out", str(tmp_path / "a.beton"), "--workers", "1"]) == 1
    assert "a.tar: x/1.jpg: cannot be used:" in single_stderr_line(capsys)
