"""Writing .beton files: what FFCV reads back, and what is left when something goes wrong."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_prep import journal, progress, publish
from data_prep.beton_writer import BetonWriter
from data_prep.encode import WorkerKilledError, encoded, workers
from data_prep.publish import claimed, temporary_path
from data_prep.recipe import Recipe
from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST, fashion_mnist, read_idx
from data_prep.sources.folders import image_folder
from data_prep.sources.source import InputError, Source
from data_prep.write_beton import main, write
from tests.helpers.paths import ROOT
from vit.data.dataset_manifest import manifest_path, read_dataset_manifest

COMMAND = [sys.executable, "-m", "data_prep.write_beton"]
Pixels = NDArray[np.uint8]

needs_fashion_mnist = pytest.mark.skipif(
    not PACKAGED_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)

# Stock FFCV in a process of its own: more than one Loader in a process is not safe.
READER = """
import sys, numpy as np
from ffcv.loader import Loader, OrderOption
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
order = OrderOption.SEQUENTIAL
loader = Loader(sys.argv[1], batch_size=7, num_workers=1, order=order, drop_last=False, pipelines=pipelines)
batches = [(images.copy(), labels.copy()) for images, labels in loader]
images, labels = (np.concatenate(column) for column in zip(*batches))
np.savez(sys.argv[2], images=images, labels=labels[:, 0])
"""


def read_back(beton: Path) -> tuple[Pixels, NDArray[np.int64]]:
    """Images (N, H, W, 3) and labels (N,) as stock FFCV's Loader gives them."""
    out = beton.with_suffix(".npz")
    environment = os.environ | {"NUMBA_THREADING_LAYER": "omp"}
    subprocess.run([sys.executable, "-c", READER, str(beton), str(out)], check=True, timeout=120, env=environment)
    with np.load(out) as content:
        return content["images"], content["labels"]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    small = Image.fromarray(noise(4, 4, seed))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def small_folder(path: Path, images: int = 3) -> Path:
    """An ImageFolder of two classes, "cat" and "dog", of images of different sizes."""
    for seed in range(2 * images):
        save(path / ("cat", "dog")[seed % 2] / f"{seed}.png", smooth(20 + seed % 30, 50 - seed % 30, seed))
    return path


def labels_of(beton: Path) -> list[int]:
    from ffcv.reader import Reader

    return Reader(str(beton)).metadata["f1"].tolist()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command said on stderr, which must be one line."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


# What is written


@needs_fashion_mnist
def test_ffcv_reads_fashion_mnist_back_pixel_for_pixel(tmp_path: Path) -> None:
    """The first 300 test images, in the order of the published files, with their labels."""
    out = tmp_path / "val.beton"
    assert main(["fashion-mnist", "--split", "val", "--out", str(out), "--limit", "300", "--no-shuffle"]) == 0
    pixels = gzip.decompress((PACKAGED_FASHION_MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((PACKAGED_FASHION_MNIST / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    images, found = read_back(out)
    gray = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)[:300]
    np.testing.assert_array_equal(images, np.stack([gray] * 3, axis=-1))
    assert found.tolist() == list(labels[:300])


def test_images_of_every_kind_are_stored_upright_in_rgb(tmp_path: Path) -> None:
    """Gray, palette, RGBA, CMYK, 16 bits and EXIF rotation: raw pixels are those that a person sees."""
    rgb, gray = noise(32, 40), noise(32, 40, 1)[..., 0]
    palette = noise(1, 256, 2)[0]
    cmyk = np.dstack([rgb, gray])
    folder = tmp_path / "images" / "only"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: the stored image's left is its top
    save(folder / "0-rgb.png", rgb)
    save(folder / "1-gray.png", gray)
    save(folder / "2-rgba.png", np.dstack([rgb, gray]))
    save(folder / "3-sixteen.png", gray.astype(np.uint16) * 256 + 77)
    save(folder / "4-turned.png", np.ascontiguousarray(np.rot90(rgb)), exif=exif)
    indexed = Image.fromarray(gray, "P")
    indexed.putpalette(palette.tobytes())
    indexed.save(folder / "5-palette.png")
    Image.fromarray(cmyk, "CMYK").save(folder / "6-cmyk.tif")
    out = tmp_path / "out.beton"
    arguments = ["imagefolder", str(folder.parent), "--out", str(out), "--mode", "raw", "--no-shuffle"]
    assert main(arguments) == 0
    images, labels = read_back(out)
    three = np.stack([gray] * 3, axis=-1)
    cmyk_as_rgb = np.asarray(Image.fromarray(cmyk, "CMYK").convert("RGB"))
    expected = [rgb, three, rgb, three, rgb, palette[gray], cmyk_as_rgb]
    for name, image, pixels in zip(sorted(left_in(folder)), images, expected, strict=True):
        np.testing.assert_array_equal(image, pixels, err_msg=name)
    assert labels.tolist() == [0] * 7


def test_jpgs_are_close_to_their_originals_and_scaled_to_the_longer_side(tmp_path: Path) -> None:
    """At quality 90 a smooth image keeps a peak signal-to-noise ratio of 35 dB; 96x128 pixels become 48x64."""
    for seed in range(4):
        save(tmp_path / "images" / "ab"[seed % 2] / f"{seed}.png", smooth(96, 128, seed))
    out = tmp_path / "out.beton"
    arguments = ["imagefolder", str(tmp_path / "images"), "--out", str(out), "--max-resolution", "64", "--no-shuffle"]
    assert main(arguments) == 0
    images, labels = read_back(out)
    assert images.shape == (4, 48, 64, 3)
    assert labels.tolist() == [0, 0, 1, 1]
    for image, seed in zip(images, (0, 2, 1, 3), strict=True):
        original = smooth(96, 128, seed).astype(float).reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
        assert 10 * np.log10(255**2 / np.mean((image - original) ** 2)) > 35


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_the_bytes_do_not_depend_on_the_number_of_workers(mode: str, tmp_path: Path) -> None:
    """1 worker, 3 workers and 3 again: one file."""
    folder = small_folder(tmp_path / "images", images=100)
    contents = set()
    for run, count in enumerate((1, 3, 3)):
        out = tmp_path / f"{run}.beton"
        assert main(["imagefolder", str(folder), "--out", str(out), "--mode", mode, "--workers", str(count)]) == 0
        contents.add(out.read_bytes())
    assert len(contents) == 1


def test_samples_are_shuffled_by_the_seed_unless_told_otherwise(tmp_path: Path) -> None:
    """Reading in the order of the file is not reading class by class."""
    folder = small_folder(tmp_path / "images", images=20)
    orders = []
    for run, options in enumerate(([], ["--seed", "0"], ["--seed", "1"], ["--no-shuffle"])):
        out = tmp_path / f"{run}.beton"
        assert main(["imagefolder", str(folder), "--out", str(out), *options]) == 0
        orders.append(labels_of(out))
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == sorted(orders[3]) == sorted(orders[0]) == sorted(orders[2])
    assert sorted(orders[0]) not in (orders[0], orders[2])


def test_the_manifest_says_what_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its keys, the digest of the file, the classes and the range of sizes; and a summary for a person."""
    folder = small_folder(tmp_path / "images")
    save(folder / "cat" / "more.png", smooth(30, 30))
    out = tmp_path / "deep" / "er" / "train.beton"
    assert main(["imagefolder", str(folder), "--out", str(out), "--quality", "80", "--seed", "3"]) == 0
    content = json.loads((out.parent / "train.beton.json").read_text())
    versions = content.pop("versions")
    assert set(versions) == {"ffcv", "numpy", "pillow", "torchvision"}
    assert versions["numpy"] == np.__version__
    pages = content.pop("pages")
    whole = out.read_bytes()
    assert pages == [hashlib.sha256(whole[i : i + (8 << 20)]).hexdigest() for i in range(0, len(whole), 8 << 20)]
    means, stds = np.array([content.pop("mean"), content.pop("std")])
    originals = np.concatenate([np.asarray(Image.open(path)).reshape(-1, 3) for path in folder.rglob("*.png")]) / 255
    np.testing.assert_allclose([means, stds], [originals.mean(0), originals.std(0)], rtol=1e-9)
    sizes = {"min_height": 20, "max_height": 30, "min_width": 30, "max_width": 50}
    drawn = {"reencode": False, "copied": 0, "compress_probability": None, "compress_seed": None}
    assert content == {
        "format": "vit-beton-1",
        "file": "train.beton",
        "bytes": out.stat().st_size,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "samples": 7,
        "classes": ["cat", "dog"],
        "histogram": [4, 3],
        "image": {"mode": "jpg", "max_resolution": 500, "quality": 80, **sizes, **drawn},
        "source": f"imagefolder {folder}",
        "seed": 3,
        "names": None,
        "page_size": 8 << 20,
        "left_out": [],
    }
    assert left_in(out.parent) == {"train.beton", "train.beton.json"}
    summary = capsys.readouterr().out
    assert str(out) in summary
    assert "7 samples" in summary
    assert "model.num_classes 2" in summary


@needs_fashion_mnist
def test_fashion_mnist_is_the_same_from_torchvision_as_from_debian(tmp_path: Path) -> None:
    """Where the package is not installed, torchvision's copy is read."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in PACKAGED_FASHION_MNIST.iterdir():
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    packaged, downloaded = fashion_mnist("val", tmp_path), fashion_mnist("val", tmp_path, packaged=tmp_path / "none")
    assert len(packaged.labels) == 10_000
    assert packaged.classes == downloaded.classes
    assert packaged.classes[9] == "Ankle boot"
    np.testing.assert_array_equal(packaged.labels, downloaded.labels)
    np.testing.assert_array_equal(np.stack(packaged.images), np.stack(downloaded.images))


# Bad input


def not_an_image(folder: Path) -> str:
    (folder / "cat" / "notes.jpg").write_text("meow")
    return "cat/notes.jpg"


def truncated(folder: Path) -> str:
    path = save(folder / "dog" / "half.jpg", noise(64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    return "dog/half.jpg"


def empty_file(folder: Path) -> str:
    (folder / "dog" / "empty.png").touch()
    return "dog/empty.png"


def dangling(folder: Path) -> str:
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere")
    return "dog/gone.png"


def thirty_two_bits(folder: Path) -> str:
    save(folder / "dog" / "deep.tif", np.zeros((8, 8), np.int32))
    return "dog/deep.tif"


def empty_class(folder: Path) -> str:
    (folder / "zebra").mkdir()
    return "zebra"


def no_classes(folder: Path) -> str:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return str(folder)


def no_folder(folder: Path) -> str:
    folder.rename(folder.with_name("moved"))
    return f"{folder}: no such folder"


@pytest.mark.parametrize(
    "spoil",
    [not_an_image, truncated, empty_file, dangling, thirty_two_bits, empty_class, no_classes, no_folder],
    ids=lambda spoil: spoil.__name__,
)
def test_what_cannot_be_read_is_named_in_one_line(
    spoil: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, no traceback, and nothing half-made."""
    folder = small_folder(tmp_path / "images")
    name = spoil(folder)
    out = tmp_path / "out" / "train.beton"
    out.parent.mkdir()
    assert main(["imagefolder", str(folder), "--out", str(out), "--workers", "2"]) == 1
    assert name in one_line(capsys)
    assert left_in(out.parent) == set()


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_names_no_class_is_refused(label: int, tmp_path: Path) -> None:
    """FFCV would train with it."""
    source = Source(("a", "b"), [noise(4, 4)] * 4, np.array([0, 1, label, 0]))
    with pytest.raises(InputError, match=f"label of sample 2 is {label}, which is not in 0 to 1"):
        write(source, tmp_path / "out.beton", Recipe(source="here"), 1)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize(
    "options",
    [
        ["--max-resolution", "0"],
        ["--max-resolution", "5000"],
        ["--quality", "0"],
        ["--quality", "101"],
        ["--workers", "0"],
        ["--limit", "0"],
        ["--seed", "-1"],
        ["--mode", "smart"],
        ["--compress-probability", "1.5"],
        ["--subset", "0"],
        ["--per-class", "0"],
        ["--on-bad", "ignore"],
    ],
    ids="=".join,
)
def test_an_option_out_of_range_is_a_usage_error(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 before anything is read; the message names the option and the value."""
    with pytest.raises(SystemExit) as ended:
        main(["imagefolder", str(tmp_path), "--out", str(tmp_path / "out.beton"), *options])
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert options[0].removeprefix("--") in message
    assert options[1] in message


def test_a_damaged_idx_file_is_named(tmp_path: Path) -> None:
    """Cut, no gzip, or of another length than it says."""
    whole = gzip.compress(b"\0\0\x08\x01" + (20).to_bytes(4, "big") + bytes(20))
    path = tmp_path / "labels.gz"
    path.write_bytes(whole)
    assert read_idx(path).shape == (20,)
    for content in (whole[:-9], b"labels", gzip.compress(gzip.decompress(whole)[:-1])):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"labels\.gz"):
            read_idx(path)


# The file that is there already


def test_the_command_can_be_repeated(tmp_path: Path) -> None:
    """A whole file of the same recipe is left alone with exit code 0, even where its images are gone."""
    out = tmp_path / "train.beton"
    arguments = ["imagefolder", str(small_folder(tmp_path / "images")), "--out", str(out)]
    assert main(arguments) == 0
    before = out.stat()
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    again = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (0, f"already there: {out}\n", "")
    assert out.stat() == before


@pytest.mark.parametrize("damage", ["cut", "no manifest", "manifest of another kind", "another recipe"])
def test_another_file_in_the_way_is_kept_unless_forced(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused with the reason; --force replaces it with a whole one."""
    out, manifest = tmp_path / "train.beton", tmp_path / "train.beton.json"
    arguments = ["imagefolder", str(small_folder(tmp_path / "images")), "--out", str(out)]
    assert main(arguments) == 0
    reason = {"cut": "bytes", "another recipe": "quality 90, not 50"}.get(damage, "train.beton.json")
    if damage == "cut":
        os.truncate(out, out.stat().st_size - 24)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest of another kind":
        manifest.write_text('{"format": "vit-beton-0"}')
    else:
        arguments += ["--quality", "50"]
    content = out.read_bytes()
    capsys.readouterr()
    assert main(arguments) == 1
    said = one_line(capsys)
    assert reason in said
    assert "--force" in said
    assert out.read_bytes() == content
    assert main([*arguments, "--force"]) == 0
    assert read_dataset_manifest(out).sha256 == hashlib.sha256(out.read_bytes()).hexdigest()


def test_two_commands_do_not_write_one_file_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused and does no harm to the first."""
    out = tmp_path / "train.beton"
    folder = small_folder(tmp_path / "images")
    monkeypatch.setattr(publish, "_PATIENCE", 0.1)
    with claimed(out) as temporary:
        temporary.write_text("of the first")
        assert main(["imagefolder", str(folder), "--out", str(out)]) == 1
        assert "another command is writing" in one_line(capsys)
        assert temporary.read_text() == "of the first"


# Faults


class Command:
    """The command in a process of its own, forked from this one, which has imported everything already."""

    def __init__(self, arguments: list[str], said: Path) -> None:
        self.said = said
        self.process = multiprocessing.get_context("fork").Process(target=self.run, args=(arguments,))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def run(self, arguments: list[str]) -> None:
        os.setsid()
        os.dup2(os.open(self.said, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w")
        sys.argv[1:] = arguments
        del sys.modules["data_prep.write_beton"]  # runpy warns of it
        runpy.run_module("data_prep.write_beton", run_name="__main__", alter_sys=True)

    def end(self) -> tuple[int | None, str]:
        """Exit code and what it said on stderr; fails if it hangs."""
        self.process.join(20)
        assert not self.process.is_alive(), "hangs"
        return self.process.exitcode, self.said.read_text()

    def workers(self) -> list[int]:
        """The forked children, which have the parent's command line; multiprocessing's tracker has another."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        own = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == own]


@contextlib.contextmanager
def under_way(out: Path) -> Iterator[Command]:
    """The command writing all of Fashion-MNIST, when the first pages are in the file."""
    temporary = out.with_name(f".{out.name}.tmp")
    out.parent.mkdir()
    command = Command(
        ["fashion-mnist", "--split", "train", "--out", str(out), "--workers", "2"], out.parent.parent / "stderr"
    )
    try:
        while not (temporary.exists() and temporary.stat().st_size > 8 << 20):
            assert command.process.is_alive(), "ended too early"
            time.sleep(0.002)
        yield command
    finally:
        command.process.kill()
        command.process.join()


def living(pids: list[int]) -> list[int]:
    """Those that run; a dead one that nobody has waited for yet does not."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, stat in states.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


@needs_fashion_mnist
def test_a_killed_command_leaves_no_file_and_can_be_repeated(tmp_path: Path) -> None:
    """SIGKILL half-way: no file under the final name, no worker lives on, and the next run tidies up and succeeds."""
    out = tmp_path / "data" / "train.beton"
    with under_way(out) as command:
        pids = command.workers()
        assert len(pids) == 2
        os.kill(command.pid, signal.SIGKILL)
        assert command.end()[0] == -signal.SIGKILL
    assert left_in(out.parent) == {".train.beton.tmp"}
    end = time.monotonic() + 10
    while living(pids):
        assert time.monotonic() < end, "workers outlive the command"
        time.sleep(0.01)
    assert main(["fashion-mnist", "--split", "train", "--out", str(out)]) == 0
    assert left_in(out.parent) == {"train.beton", "train.beton.json"}
    assert read_dataset_manifest(out).sha256 == hashlib.sha256(out.read_bytes()).hexdigest()


@needs_fashion_mnist
def test_a_killed_worker_ends_the_command(tmp_path: Path) -> None:
    """FFCV's own writer would wait for it for ever."""
    out = tmp_path / "data" / "train.beton"
    with under_way(out) as command:
        os.kill(command.workers()[1], signal.SIGKILL)
        code, said = command.end()
    assert code == 1
    assert said.count("\n") == 1
    assert "worker process was killed" in said
    assert left_in(out.parent) == set()
    assert main(["fashion-mnist", "--split", "train", "--out", str(out), "--limit", "50"]) == 0


def test_a_worker_killed_while_it_sends_is_noticed() -> None:
    """Its pipe holds half an answer; concurrent.futures would wait for the other half for ever."""
    source = Source(("only",), [noise(1000, 1000)] * 8, np.zeros(8, np.int64))  # 3 MB each, more than a pipe holds
    with workers(2, source, Recipe(source="here", mode="raw", max_resolution=1000)) as pipes:
        answers = encoded(pipes, np.arange(8), 1)
        first = next(answers)
        assert (first.rows["height"].tolist(), len(first.contents[0])) == ([1000], 3_000_000)
        pipe = pipes[1]
        while not pipe.poll(0.01):  # until it has begun to send
            pass
        max(multiprocessing.active_children(), key=lambda child: child.pid or 0).kill()
        with pytest.raises(WorkerKilledError):
            list(answers)


@needs_fashion_mnist
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_command_leaves_nothing(name: str, tmp_path: Path) -> None:
    """Ctrl-C, or the SIGTERM of a scheduler: one line, exit code 130."""
    out = tmp_path / "data" / "train.beton"
    with under_way(out) as command:
        os.kill(command.pid, signal.Signals[name])
        code, said = command.end()
    assert code == 130
    assert said.count("\n") == 1
    assert "interrupted" in said
    assert left_in(out.parent) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 6 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_and_left_as_it_was(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No space for the first page: one line, exit code 1, and the space is free again."""
    folder = small_folder(small_disk.parent / "images")
    free = os.statvfs(small_disk).f_bfree
    assert main(["imagefolder", str(folder), "--out", str(small_disk / "train.beton")]) == 1
    assert "No space left on device" in one_line(capsys)
    assert left_in(small_disk) == set()
    assert os.statvfs(small_disk).f_bfree == free


# Going on


@dataclass
class Unfinished:
    """A command that was killed half-way, and what it would have written."""

    folder: Path  # a copy of it is gone on with
    whole: Path
    source: Source
    recipe: Recipe

    def killed(self, to: Path, asked: int) -> None:
        """Write, or go on, in `to` and die by SIGKILL after so many images, each 22 of them in the journal."""
        keep = journal.Journal.keep

        def then_die(found: journal.Journal) -> None:
            keep(found)
            if found._writing:
                found._writing.result()
            if found._file.tally.asked >= asked:
                os.kill(os.getpid(), signal.SIGKILL)

        def run() -> None:
            journal.EVERY = 0
            journal.Journal.keep = then_die  # type: ignore[method-assign]
            write(self.source, to / "a.beton", self.recipe, 1)

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        assert left_in(to) == {".a.beton.tmp", ".a.beton.tmp.journal"}

    def again(self, to: Path, **changed: Any) -> Path:
        """What the command, given again, makes of a copy of what was left; `changed` options of the recipe."""
        write(self.source, to / "a.beton", dataclasses.replace(self.recipe, **changed), 1)
        assert left_in(to) == {"a.beton", "a.beton.json"}
        return to / "a.beton"

    def copied(self, to: Path) -> tuple[Path, Path]:
        """A copy of the unfinished file and of its journal."""
        shutil.copytree(self.folder, to, dirs_exist_ok=True)
        temporary = temporary_path(to / "a.beton")
        return temporary, journal.journal_path(temporary)


def same(one: Path, other: Path) -> bool:
    """Both of the file and of its manifest."""
    pairs = [(one, other), (manifest_path(one), manifest_path(other))]
    return all(a.read_bytes() == b.read_bytes() for a, b in pairs)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Unfinished:
    """400 images of 100 kB as pixels, in five pages, killed after 308; a line of the journal for every 22."""
    folder, whole = tmp_path_factory.mktemp("half"), tmp_path_factory.mktemp("whole")
    pixels = noise(190 * 2, 180 * 2)
    images: list[Pixels | str] = [pixels[i % 190 :][:190, i % 180 :][:, :180] for i in range(400)]
    images[250] = "/nowhere.png"
    source = Source(("a", "b"), images, np.arange(400) % 2)
    recipe = Recipe(source="here", mode="raw", on_bad="skip", shuffle=False)
    write(source, whole / "a.beton", recipe, 1)
    made = Unfinished(folder, whole / "a.beton", source, recipe)
    made.killed(folder, 300)
    return made


@needs_fashion_mnist
def test_a_command_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of the whole group, of the command alone, Ctrl-C, SIGTERM, at random moments, ten times."""
    whole, out = tmp_path / "whole" / "train.beton", tmp_path / "data" / "train.beton"
    arguments = ["fashion-mnist", "--split", "train", "--limit", "20000", "--workers", "2", "--out"]
    assert main([*arguments, str(whole)]) == 0
    monkeypatch.setattr(journal, "EVERY", 0.02)
    random = np.random.default_rng()
    shares = [0.0]
    for attempt in range(10):
        command = Command([*arguments, str(out)], tmp_path / f"stderr-{attempt}")
        temporary = temporary_path(out)
        while (journal.share_kept(temporary) or 0) <= shares[-1] and command.process.is_alive():
            time.sleep(0.002)  # it gets further each time, as it must
        time.sleep(random.uniform(0, 0.05))
        if attempt % 2:
            os.killpg(command.pid, signal.SIGKILL)
        else:
            os.kill(command.pid, (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)[attempt // 2 % 3])
        code, said = command.end()
        assert code in (-signal.SIGKILL, 130, 0), said
        if code == 0:
            break
        shares.append(journal.share_kept(temporary) or 0)
        assert not out.exists()
        assert code != 130 or f"interrupted; {shares[-1]:.0%} is done, the same command goes on there" in said
        assert not attempt or "going on after" in said
    assert len(shares) > 6
    assert main([*arguments, str(out)]) == 0
    assert same(out, whole)
    assert left_in(out.parent) == {"train.beton", "train.beton.json"}


def test_the_place_is_told_and_the_speed_is_that_of_this_run(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done before counts for the place, and not for the images/s or the time left."""
    unfinished.copied(tmp_path)
    monkeypatch.setattr(progress, "EVERY", 0)
    assert same(unfinished.again(tmp_path), unfinished.whole)
    first, *_, last = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert first == "going on after 308 of 400 images"
    assert last.startswith("400 of 400 images, ")
    assert last.endswith(", 0 s left")
    with progress.progress(1_000_000, before=900_000) as advance:
        time.sleep(0.1)
        advance(100)
    place, rate, left = capsys.readouterr().err.split(", ")
    assert place == "900,100 of 1,000,000 images"
    speed = float(rate.removesuffix(" images/s").replace(",", ""))
    assert 0 < speed <= 1000
    assert float(left.removesuffix(" s left\n").replace(",", "")) == pytest.approx(99_900 / speed, rel=0.01)


def test_a_journal_cut_anywhere_never_leads_astray(unfinished: Unfinished, tmp_path: Path) -> None:
    """After a loss of power it may end at any byte; what is gone on with is what its whole lines tell."""
    temporary, path = unfinished.copied(tmp_path)
    content, samples = path.read_bytes(), len(unfinished.source.labels)
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    identity = json.loads(content[9 : ends[0]])
    identity = {key: value for key, value in identity.items() if key not in ("format", "samples")}
    pristine = temporary.read_bytes()
    near = {end + by for end in (0, *ends[:2], ends[-1]) for by in (-2, -1, 0, 1, 9)}
    cuts = near | set(range(0, len(content), 7919))
    for cut in sorted(cuts & set(range(len(content) + 1))):
        path.write_bytes(content[:cut])
        file = BetonWriter(temporary, samples, 8 << 20)
        with file.file, journal.Journal(temporary, file, identity) as found:
            found.resume(allow_left_out=True)
        whole_lines = sum(end <= cut for end in ends)
        assert file.tally.asked == 22 * max(0, whole_lines - 1)
        assert temporary.stat().st_size == file.tally.position
        assert path.exists() == (whole_lines > 1)
        temporary.write_bytes(pristine)
    for cut in (5, ends[0], ends[2] - 1, len(content)):
        temporary, path = unfinished.copied(tmp_path / str(cut))
        path.write_bytes(content[:cut])
        assert same(unfinished.again(path.parent), unfinished.whole)


def test_damage_to_what_is_written_is_noticed_before_it_is_gone_on_with(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped byte, a hole, a file cut short, a flipped byte of the journal: done again from before the damage."""
    first_page, hundred_kb = 8 << 20, 190 * 180 * 3
    length = temporary_path(unfinished.folder / "a.beton").stat().st_size
    expected = {first_page: 0, first_page + 100 * hundred_kb: 88, length - 1: 286, -1: 22, 4096: 308}
    for at, asked in expected.items():
        temporary, path = unfinished.copied(tmp_path / str(at))
        spoilt = temporary if at >= 0 else path
        content = bytearray(spoilt.read_bytes())
        content[at if at >= 0 else content.index(b"\n", content.index(b"\n", content.index(b"\n") + 1) + 1) - 9] ^= 1
        spoilt.write_bytes(content)
        assert same(unfinished.again(temporary.parent), unfinished.whole)
        said = capsys.readouterr().err
        assert (f"going on after {asked} of 400 images" in said) if asked else ("starting over: what was" in said), at
    temporary, _ = unfinished.copied(tmp_path / "short")
    os.truncate(temporary, first_page + 200 * hundred_kb)
    assert same(unfinished.again(temporary.parent), unfinished.whole)
    assert "going on after 198" in capsys.readouterr().err


def test_another_recipe_or_other_images_start_over(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that says why; what comes out is of the new recipe alone."""
    for name, changed, said in (
        ("seed", {"shuffle": True}, "it was begun with seed None, not 0"),
        ("mode", {"mode": "jpg"}, "it was begun with mode raw, not jpg"),
    ):
        unfinished.copied(tmp_path / name)
        found = unfinished.again(tmp_path / name, **changed)
        assert f"starting over: {said}\n" in capsys.readouterr().err
        assert same(found, Unfinished.again(unfinished, tmp_path / f"{name}-anew", **changed))
        capsys.readouterr()
    unfinished.copied(tmp_path / "images")
    labels = unfinished.source.labels[::-1].copy()
    other = dataclasses.replace(unfinished, source=dataclasses.replace(unfinished.source, labels=labels))
    assert not same(other.again(tmp_path / "images"), unfinished.whole)
    assert "starting over: the images are no longer the same\n" in capsys.readouterr().err


def test_an_image_that_was_left_out_is_tried_again_if_it_may_not_be(unfinished: Unfinished, tmp_path: Path) -> None:
    """Begun with --on-bad skip and gone on with without it: it must not be missing silently."""
    unfinished.copied(tmp_path)
    with pytest.raises(InputError, match=r"/nowhere\.png") as found:
        unfinished.again(tmp_path, on_bad="fail")
    assert found.value.__notes__ == ["60% is done, the same command goes on there"]
    assert same(unfinished.again(tmp_path, on_bad="skip"), unfinished.whole)


def test_what_was_left_out_after_going_on_is_remembered_too(unfinished: Unfinished, tmp_path: Path) -> None:
    """Killed before it, gone on, killed behind it, gone on: it is in the manifest, once."""
    unfinished.killed(tmp_path, 230)
    unfinished.killed(tmp_path, 300)
    assert same(unfinished.again(tmp_path), unfinished.whole)
    assert [each["image"] for each in read_dataset_manifest(unfinished.whole).left_out] == ["/nowhere.png"]


def test_a_bad_image_can_be_mended_or_skipped_without_doing_the_others_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour one of a million cannot be decoded; the hour is not lost."""
    monkeypatch.setattr(journal, "EVERY", 0)
    folder, out = small_folder(tmp_path / "images", images=100), tmp_path / "train.beton"
    bad = folder / "dog" / "199.png"
    mended = bad.read_bytes()
    bad.write_bytes(b"")
    arguments = ["imagefolder", str(folder), "--no-shuffle", "--workers", "1", "--out", str(out)]
    assert main(arguments) == 1
    said = one_line(capsys)
    assert "dog/199.png" in said
    assert said.endswith("% is done, the same command goes on there\n")
    assert left_in(tmp_path) == {"images", ".train.beton.tmp", ".train.beton.tmp.journal"}
    bad.write_bytes(mended)
    assert main(arguments) == 0
    assert re.match(r"going on after [1-9]\d+ of 200 images\n", capsys.readouterr().err)
    assert read_dataset_manifest(out).samples == 200
    content = out.read_bytes()
    assert main([*arguments, "--force"]) == 0
    assert out.read_bytes() == content


def test_force_starts_over(unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier command left is gone, and nothing of it is checked or said."""
    _, path = unfinished.copied(tmp_path)
    shutil.copy(path, tmp_path / ".train.beton.tmp.journal")
    folder = small_folder(tmp_path / "images")
    assert main(["imagefolder", str(folder), "--out", str(tmp_path / "train.beton"), "--force"]) == 0
    assert "starting over" not in capsys.readouterr().err
    assert not list(tmp_path.glob(".train*"))


def test_a_disk_that_fills_up_can_be_freed_and_gone_on_with(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For images, for the journal and for the table at the end alike: one line, and then the same bytes."""
    monkeypatch.setattr(journal, "EVERY", 0)
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    folder, whole, out = small_disk.parent / "images", small_disk.parent / "a.beton", small_disk / "data" / "a.beton"
    picture = save(small_disk.parent / "noise.png", noise(190, 180)).read_bytes()
    for i in range(200):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    arguments = ["imagefolder", str(folder), "--mode", "raw", "--workers", "2", "--out"]
    assert main([*arguments, str(whole)]) == 0
    ballast = small_disk / "ballast"
    for megabytes in (20, 18, 16.1, 15, 14, 12.5, 11.7, 9, 8.5):  # with the last two, the table does not fit
        ballast.write_bytes(bytes(int(megabytes * 2**20)))
        capsys.readouterr()
        assert main([*arguments, str(out)]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "No space left on device" in said
        assert "the same command goes on there" in said
        assert not out.exists()
        ballast.unlink()
    assert "; 100% is done" in said
    assert main([*arguments, str(out)]) == 0
    assert same(out, whole)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before an hour of work is spent on it."""
    assert main(["imagefolder", str(small_folder(tmp_path / "images")), "--out", str(tmp_path), "--force"]) == 1
    assert "is a folder" in one_line(capsys)


def test_classes_are_numbered_as_torchvision_does(tmp_path: Path) -> None:
    """By the sorted names of the folders, upper case first; other files are no samples."""
    for name in ("b", "a", "Z"):
        save(tmp_path / name / "x" / "1.PNG", noise(4, 4))
    (tmp_path / "readme.txt").touch()
    (tmp_path / "a" / "readme.txt").touch()
    source = image_folder(tmp_path)
    assert source.classes == ("Z", "a", "b")
    assert source.labels.tolist() == [0, 1, 2]
    assert source.images[1] == str(tmp_path / "a" / "x" / "1.PNG")
