"""Parquet files of images, as Hugging Face's `datasets` writes them."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.sources.parquet import parquet
from data_prep.sources.parquet_rows import Row
from data_prep.sources.source import InputError, Source, read_image_file
from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, noise, smooth
from tests.helpers.published_data import IMAGE, NAMES, hub_file
from tests.helpers.write_command import single_stderr_line, stored_images, write_beton
from vit.data.dataset_manifest import read_dataset_manifest


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [encode_image(smooth(20 + i % 9, 30, first + i), ("JPEG", "PNG")[i % 2]) for i in range(count)]


def contents(source: Source) -> list[bytes]:
    return [read_image_file(image) for image in source.images if not isinstance(image, np.ndarray)]


def test_files_of_the_hub_give_their_images_labels_and_class_names(tmp_path: Path) -> None:
    """In the order of the files and rows, across row groups; given as a folder, a pattern or files."""
    images, labels = pictures(21), [i % 3 for i in range(21)]
    for i, rows in enumerate((slice(0, 10), slice(10, 11), slice(11, 21))):
        hub_file(tmp_path / "data" / f"train-0000{i}-of-00003.parquet", images[rows], labels[rows])
    (tmp_path / "data" / "README.md").write_text("a card")
    for patterns in (
        [tmp_path / "data"],
        [tmp_path / "data" / "train-*"],
        sorted((tmp_path / "data").glob("*.parquet")),
    ):
        source = parquet(list(map(str, patterns)))
        assert source.classes == NAMES
        assert source.labels.tolist() == labels
        assert contents(source) == images
    table = pq.read_table(sorted((tmp_path / "data").glob("*.parquet")))  # the library's own reader
    assert contents(source) == [row["bytes"] for row in table["image"].to_pylist()]
    assert source.labels.tolist() == table["label"].to_pylist()
    backward = [read_image_file(source.images[i]) for i in (20, 3, 12, 0)]  # type: ignore[arg-type]
    assert backward == [images[i] for i in (20, 3, 12, 0)]
    assert source.describe(11) == f"{tmp_path}/data/train-00002-of-00003.parquet: row 0"
    assert source.images[-1] == source.images[20] == list(source.images)[20]


def test_a_folder_with_several_splits_is_refused(tmp_path: Path) -> None:
    """Test images in a training set would make its results worthless; a pattern names one split."""
    for name in ("train-0", "train-1", "test-0", "trainer"):
        hub_file(tmp_path / f"{name}.parquet", pictures(2), [0, 1])
    with pytest.raises(InputError, match=r"files of several splits, such as test and train; .*/test\*'"):
        parquet([str(tmp_path)])
    assert len(parquet([str(tmp_path / "train-*")]).labels) == 4
    (tmp_path / "test-0.parquet").unlink()
    assert len(parquet([str(tmp_path)]).labels) == 6


def test_the_beton_keeps_the_order_of_the_files_unless_it_is_to_be_shuffled(tmp_path: Path) -> None:
    """Reading rows at random would decompress a row group for each; --limit takes the first rows."""
    images = [encode_image(smooth(20, 30, i)) for i in range(12)]
    file = hub_file(tmp_path / "a.parquet", images, [i % 3 for i in range(12)])
    assert stored_images(write_beton(tmp_path / "a.beton", "parquet", file)) == images
    assert stored_images(write_beton(tmp_path / "b.beton", "parquet", file, "--limit", 5)) == images[:5]
    shuffled = stored_images(write_beton(tmp_path / "c.beton", "parquet", file, "--shuffle"))
    assert shuffled != images and sorted(shuffled) == sorted(images)
    manifest = read_dataset_manifest(tmp_path / "a.beton")
    assert (manifest.classes, manifest.histogram, manifest.seed) == (list(NAMES), [4, 4, 4], None)
    few = stored_images(write_beton(tmp_path / "d.beton", "parquet", file, "--per-class", 2, "--subset", 2))
    assert len(few) == 4 and few == [image for image in images if image in few]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])]
)
@pytest.mark.parametrize(
    "labels",
    [["b", "a", "b"], pa.array(["b", "a", "b"]).dictionary_encode(), pa.array(["b", "a", "b"], pa.large_string())],
    ids=["text", "dictionary", "large"],
)
def test_images_may_be_plain_bytes_and_labels_may_be_texts(kind: pa.DataType, labels: Any, tmp_path: Path) -> None:
    """Classes are the sorted texts, or the lines of --classes; the only column of bytes is the image."""
    images = pictures(3)
    values = [{"bytes": each, "path": None} for each in images] if pa.types.is_struct(kind) else images
    pq.write_table(pa.table({"photo": pa.array(values, kind), "label": labels}), tmp_path / "a.parquet")
    source = parquet([str(tmp_path / "a.parquet")])
    assert (source.classes, source.labels.tolist()) == (("a", "b"), [1, 0, 1])
    assert contents(source) == images
    (tmp_path / "classes.txt").write_text("c\nb\na\n")
    source = parquet([str(tmp_path / "a.parquet")], "photo", "label", tmp_path / "classes.txt")
    assert (source.classes, source.labels.tolist()) == (("c", "b", "a"), [1, 2, 1])


def test_numbers_without_names_keep_their_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number that no row has is told, because the classes of the other split may end elsewhere."""
    file = hub_file(tmp_path / "a.parquet", pictures(3), [4, 0, 1], None, "fine_label", "img")
    source = parquet([str(file)])
    assert (source.classes, source.labels.tolist()) == (("0", "1", "2", "3", "4"), [4, 0, 1])
    assert "no sample has label 2, 3;" in single_stderr_line(capsys)
    (tmp_path / "classes.txt").write_text("\n".join("edcba"))
    assert parquet([str(file)], classes=tmp_path / "classes.txt").classes == ("e", "d", "c", "b", "a")
    assert not capsys.readouterr().err


def test_a_row_without_an_image_is_bad_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Null, empty, damaged, or only a path of another file; --on-bad skip leaves it out and lists it."""
    good = encode_image(noise(20, 20))
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": good}, None, {"path": "/data/7.jpg"}, {"bytes": b""}, {"bytes": b"no"}], IMAGE
            ),
            "label": [0, 1, 0, 0, 1],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    arguments = ["parquet", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "a.beton"), "--workers", "1"]
    assert main(arguments) == 1
    assert "a.parquet: row 1: cannot be used: the row has no image;" in single_stderr_line(capsys)
    assert main([*arguments, "--on-bad", "skip"]) == 0
    left_out = read_dataset_manifest(tmp_path / "a.beton", training=False).left_out
    assert [each["image"].rpartition(" ")[2] for each in left_out] == ["1", "2", "3", "4"]
    assert "only the path of another file, /data/7.jpg" in left_out[1]["why"]
    assert left_out[2]["why"] == "the file is empty"


def test_unsuitable_files_are_refused_in_one_line_that_lists_the_columns(tmp_path: Path) -> None:
    """Unknown columns, nested lists, labels that are not labels, and files of different data sets."""
    file = str(hub_file(tmp_path / "a.parquet", pictures(2), [0, 1]))
    columns = r"id \(string\), image \(struct<bytes: binary, path: string>\), label \(int64\)"
    for arguments, message in (
        (("picture",), f"no column picture; its columns are {columns}"),
        ((None, "klass"), f"no column klass; its columns are {columns}"),
        (("id",), "column id is string, not an image"),
        ((None, "image"), "column image is struct.*labels are integers or strings"),
    ):
        with pytest.raises(InputError, match=message):
            parquet([file], *arguments)
    image = pa.array([{"bytes": b"x"}] * 2, IMAGE)
    for number, (table, message) in enumerate(
        (
            ({"image": pa.array([[{"bytes": b"x"}]] * 2, pa.list_(IMAGE)), "label": [0, 1]}, "not an image"),
            ({"a": image, "b": image, "label": [0, 1]}, "2 columns may be the images.*--image-column"),
            ({"image": image, "x": [0, 1]}, "no columns may be the labels.*x .int64.*--label-column"),
            ({"image": image, "label": [0.0, 1.0]}, "column label is double"),
            ({"image": image, "label": [0, None]}, "row 1 has no label"),
            ({"image": image, "label": [0, -1]}, "label -1, which usually means that there are no labels"),
            ({"image": image, "label": pa.array([0, 2**64 - 1], pa.uint64())}, "cannot be read"),
            ({"image": image[:0], "label": pa.array([], pa.int64())}, "has no rows"),
        )
    ):
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet")
        with pytest.raises(InputError, match=message):
            parquet([str(tmp_path / f"{number}.parquet")])
    other = str(hub_file(tmp_path / "other.parquet", pictures(2), [0, 1], NAMES[::-1]))
    with pytest.raises(InputError, match=r"other\.parquet: its class names are not those of .*a\.parquet"):
        parquet([file, other])
    with pytest.raises(InputError, match="label 2 is not in 0 to 1"):
        parquet([str(hub_file(tmp_path / "far.parquet", pictures(2), [0, 2], NAMES[:2]))])
    with pytest.raises(InputError, match="listed twice"):
        parquet([file, file])
    with pytest.raises(InputError, match=r"none-\*\.parquet: no such file"):
        parquet([str(tmp_path / "none-*.parquet")])


def test_a_damaged_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Truncated, another format, and a damaged page of images, which is found when it is its turn."""
    file = hub_file(tmp_path / "a.parquet", [noise(40, 40, i).tobytes() for i in range(8)], [0] * 8)
    whole = file.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], b"hello", b""):
        file.write_bytes(content)
        assert main(["parquet", str(file), "--out", str(tmp_path / "a.beton")]) == 1
        assert "a.parquet: cannot be read (" in single_stderr_line(capsys)
    images = [encode_image(noise(40, 40, i)) for i in range(8)]
    whole = hub_file(file, images, [0] * 8, write_page_checksum=True, compression="snappy").read_bytes()
    start = whole.index(images[5])
    file.write_bytes(whole[: start - 60] + bytes(60) + whole[start:])
    assert main(["parquet", str(file), "--out", str(tmp_path / "a.beton"), "--workers", "1"]) == 1
    assert "a.parquet: row " in single_stderr_line(capsys)


def test_without_pyarrow_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All other sources work without it."""
    file = hub_file(tmp_path / "a.parquet", pictures(1), [0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert main(["parquet", str(file), "--out", str(tmp_path / "a.beton")]) == 1
    assert "pip install 'pyarrow" in single_stderr_line(capsys)


def test_rows_are_read_in_batches_of_bounded_size(tmp_path: Path) -> None:
    """However large a row group is: 16 workers with a whole one each would fill the memory."""
    images = [noise(1, 100_000, i).tobytes() for i in range(200)]
    file = hub_file(tmp_path / "a.parquet", images, [0] * 200, row_group_size=200, write_batch_size=4)
    before = pa.total_allocated_bytes()
    pool_peak = 0
    for row in range(200):
        assert read_image_file(Row(str(file), "image", row)) == images[row]
        pool_peak = max(pool_peak, pa.total_allocated_bytes() - before)
    assert pool_peak < sum(map(len, images)) / 2


def test_an_image_is_decoded_as_pillow_decodes_it(tmp_path: Path) -> None:
    """Whatever its format."""
    image = encode_image(smooth(20, 30))
    file = hub_file(tmp_path / "a.parquet", [image], [0])
    out = write_beton(tmp_path / "a.beton", "parquet", file, "--mode", "raw")
    with Image.open(io.BytesIO(image)) as opened:
        assert stored_images(out) == [np.asarray(opened.convert("RGB")).tobytes()]
