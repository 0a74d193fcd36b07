"""The bytes of a .beton depend on the images and options alone."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.beton_reader import read_beton_index
from data_prep.write_beton import main
from tests.helpers.image_files import encode_image, image_folder, save_bytes, smooth
from tests.helpers.write_command import stored_images
from vit.data.dataset_manifest import read_dataset_manifest
from vit.data.ffcv_format import JPEG, RAW


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_the_bytes_do_not_depend_on_the_number_of_workers(mode: str, tmp_path: Path) -> None:
    """1 worker, 3 workers and 3 again write the same file."""
    folder = image_folder(tmp_path / "images", images=100)
    contents = set()
    for run, count in enumerate((1, 3, 3)):
        out = tmp_path / f"{run}.beton"
        assert main(["imagefolder", str(folder), "--out", str(out), "--mode", mode, "--workers", str(count)]) == 0
        contents.add(out.read_bytes())
    assert len(contents) == 1


def test_samples_are_shuffled_by_the_seed_unless_no_shuffle_is_given(tmp_path: Path) -> None:
    """A training run that reads the file in order does not see one class after the other."""
    folder = image_folder(tmp_path / "images", images=20)
    orders = []
    for run, options in enumerate(([], ["--seed", "0"], ["--seed", "1"], ["--no-shuffle"])):
        out = tmp_path / f"{run}.beton"
        assert main(["imagefolder", str(folder), "--out", str(out), *options]) == 0
        orders.append(read_beton_index(out, 2).labels.tolist())
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == sorted(orders[3]) == sorted(orders[0]) == sorted(orders[2])
    assert sorted(orders[0]) not in (orders[0], orders[2])


def test_mode_proportion_chooses_by_seed_and_sample(tmp_path: Path) -> None:
    """About a third of the images become JPEGs: the same ones for any order and number of workers."""
    for i in range(300):
        save_bytes(tmp_path / "images" / "only" / f"{i:03}.png", encode_image(smooth(8, 8 + i // 10, i), "PNG"))
    options = ["imagefolder", tmp_path / "images", "--mode", "proportion", "--compress-probability", "0.33"]
    modes = {}
    for name, more in {"one": [], "again": ["--workers", 3], "other": ["--seed", 1]}.items():
        assert main([*map(str, [*options, *more, "--no-shuffle", "--out", tmp_path / name])]) == 0
        modes[name] = read_beton_index(tmp_path / name, 1).mode.tolist()
    assert modes["one"] == modes["again"] != modes["other"]
    assert set(modes["one"]) == {JPEG, RAW}
    assert 70 < modes["one"].count(JPEG) < 130
    image = read_dataset_manifest(tmp_path / "other").image
    assert (image.mode, image.compress_probability, image.compress_seed) == ("proportion", 0.33, 1)
    # A file with another seed is not the one that was asked for.
    assert main([*map(str, [*options, "--out", tmp_path / "one"]), "--seed", "1", "--no-shuffle"]) == 1


def test_mean_and_std_are_exact_for_any_number_of_workers(imagenet: Path) -> None:
    """They are the same to the last digit, and equal those computed from the stored pixels."""
    found = []
    for workers in (1, 3):
        out = imagenet / f"{workers}.beton"
        arguments = ["ilsvrc", str(imagenet / "train.tar"), "--mode", "raw", "--out", str(out)]
        assert main([*arguments, "--workers", str(workers)]) == 0
        found.append((read_dataset_manifest(out).mean, read_dataset_manifest(out).std))
    assert found[0] == found[1]
    values = np.frombuffer(b"".join(stored_images(out)), np.uint8).reshape(-1, 3) / 255
    np.testing.assert_allclose(found[0], [values.mean(axis=0), values.std(axis=0)], rtol=1e-12)
