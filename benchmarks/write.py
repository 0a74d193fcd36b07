"""Writing a .beton file from ILSVRC's tar: images/s and bytes per mode, cost of the journal, and FFCV's writer.

python benchmarks/write.py [--quick]

The images are synthetic: smooth colors, edges and noise.  Nine of ten have about 400 x 350 pixels, the others are up to
1500 pixels wide; the mean size is 110 kB, as in ImageNet.  They are stored in a tar of tars like
ILSVRC2012_img_train.tar, and in folders.  Each figure is the best of several runs, each in a process of its own; the
runs alternate.  Files are written to $TMPDIR.

`resume_overhead` is the share of its time that the writing process spends on the journal, which writes to the disk in a
thread of its own.  `resume_overhead_wall` compares the times of whole runs, and is unreliable on a machine with other
load.

images/s are per core: images divided by the CPU time of all processes, which depends little on other load.  All of
ImageNet (1,281,167 and 50,000 images) on 16 cores then takes

    images / (16 * images_per_s) + bytes / 2e9 seconds

if the disks are fast enough (the second term is for the digests at the end), and images * bytes_per_image bytes.  The
last line is one JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

IMAGENET = 1_281_167 + 50_000  # images
CORES, DIGEST_RATE = 16, 2e9  # assumed; bytes/s
CLASSES = 8
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "reencode": {"reencode": True},
    "raw_256": {"mode": "raw", "max_resolution": 256},
}
TITLES = {
    "default": "default: copied up to 500 pixels, else resized, quality 90",
    "reencode": "--reencode: all images re-encoded",
    "raw_256": "--mode raw --max-resolution 256",
}


def synthetic_jpeg(number: int) -> bytes:
    """A JPEG that costs a codec about as much as a photograph."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(number)
    width, height = random.integers(300, 501), random.integers(270, 431)
    if number % 10 == 0:
        width = random.integers(600, 1501)
        height = width * 3 // 4
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][:, :, :, None]
    frequency, phase = random.uniform(1, 12, (2, 3)), random.uniform(0, 6, 3)
    pixels = 128 + 70 * np.sin(frequency[0] * x + frequency[1] * y + phase)
    pixels += random.normal(0, 18, (height, width, 3))
    pixels[height // 4 : height // 2, random.integers(50, width) :] += 60
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def make_images(folder: Path, count: int) -> float:
    """Writes `count` images to train.tar and to folders; returns their mean size in bytes."""
    total = 0
    with tarfile.open(folder / "train.tar", "w") as outer:
        for label in range(CLASSES):
            (folder / "images" / f"n{label:08}").mkdir(parents=True)
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(label, count, CLASSES):
                    content = synthetic_jpeg(number)
                    total += len(content)
                    member = tarfile.TarInfo(f"n{label:08}_{number}.JPEG")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    (folder / "images" / f"n{label:08}" / member.name).write_bytes(content)
            member = tarfile.TarInfo(f"n{label:08}.tar")
            member.size = len(inner.getvalue())
            outer.addfile(member, io.BytesIO(inner.getvalue()))
    return total / count


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have exited."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def ours(folder: Path, kind: str, mode: str, times: int, every: float) -> dict[str, float]:
    """Measures our writer: all images `times` times into one file, with a journal entry `every` so many seconds."""
    import numpy as np

    from data_prep import journal
    from data_prep.beton_reader import read_beton_index
    from data_prep.recipe import Recipe
    from data_prep.sources.folders import image_folder
    from data_prep.sources.imagenet import ilsvrc
    from data_prep.sources.source import Source
    from data_prep.write_beton import write

    journal.INTERVAL = every
    journal_seconds, append_if_due = 0.0, journal.Journal.append_if_due

    def timed(self: journal.Journal) -> None:
        nonlocal journal_seconds
        start = time.perf_counter()
        append_if_due(self)
        journal_seconds += time.perf_counter() - start

    journal.Journal.append_if_due = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    source = ilsvrc(folder / "train.tar") if kind == "ilsvrc" else image_folder(folder / "images")
    index = time.perf_counter() - start
    count = len(source.labels) * times
    source = Source(source.classes, list(source.images) * times, np.tile(source.labels, times))
    write(source, folder / "warm-up.beton", Recipe(source="synthetic", limit=2), 1)
    start, used = time.perf_counter(), cpu_seconds()
    write(source, folder / "out.beton", Recipe(source="synthetic", **MODES[mode]), 2)
    wall, used = time.perf_counter() - start, cpu_seconds() - used
    beton = read_beton_index(folder / "out.beton", CLASSES)
    return {
        "wall": count / wall,
        "journal": journal_seconds / wall,
        "per_core": count / used,
        "bytes": float((beton.offset + beton.size).max() - beton.offset.min()) / count,
        "indexed": count / times / index,
    }


def ffcv(folder: Path) -> dict[str, float]:
    """Measures FFCV's writer, used as in its documentation for ImageNet."""
    from multiprocessing import active_children

    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder / "images"))
    fields = {"image": RGBImageField(write_mode="jpg", max_resolution=500, jpeg_quality=90), "label": IntField()}
    start, used = time.perf_counter(), cpu_seconds()
    DatasetWriter(str(folder / "out.beton"), fields, num_workers=2).from_indexed_dataset(data, shuffle_indices=True)
    wall = time.perf_counter() - start
    active_children()  # reaps the children that have exited, so that their CPU time is counted
    return {"wall": len(data) / wall, "per_core": len(data) / (cpu_seconds() - used)}


def best(folder: Path, runs: dict[str, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    """The best figures over `rounds` of each of `runs`: name -> arguments of `ours`, or an empty list for FFCV."""
    results: dict[str, dict[str, float]] = {name: {} for name in runs}
    for _ in range(rounds):
        for name, arguments in runs.items():
            command = [sys.executable, __file__, "--measure", str(folder), *arguments]
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                results[name][key] = max(results[name].get(key, 0.0), value)
    return results


def compare(count: int, rounds: int, times: int, every: float) -> dict[str, Any]:
    """All figures, from `count` images.

    The cost of a journal entry `every` so many seconds is measured with `times` as many.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make_images(folder, count)
        runs = {mode: ["ilsvrc", mode, "1", "5"] for mode in MODES}
        runs |= {"folder": ["imagefolder", "reencode", "1", "5"], "ffcv": []}
        found = best(folder, runs, rounds)
        journals = {"with": ["ilsvrc", "default", str(times), str(every)]}
        journals["without"] = ["ilsvrc", "default", str(times), "1e9"]
        resumable = best(folder, journals, rounds)
    rates = {mode: found[mode]["per_core"] for mode in MODES}
    bytes_per_image = {mode: found[mode]["bytes"] for mode in MODES}
    seconds = {
        mode: IMAGENET / (CORES * rates[mode]) + IMAGENET * bytes_per_image[mode] / DIGEST_RATE for mode in MODES
    }
    return {
        "images": count,
        "kilobytes_per_image": round(size / 1000, 1),
        "images_per_s": {mode: round(rate, 1) for mode, rate in rates.items()},
        "images_per_s_two_workers": {name: round(found[name]["wall"], 1) for name in found},
        "bytes_per_image": {mode: round(size) for mode, size in bytes_per_image.items()},
        "indexed_per_s": round(max(found[mode]["indexed"] for mode in MODES)),
        "vs_ffcv_writer": round(found["folder"]["wall"] / found["ffcv"]["wall"], 3),
        "vs_ffcv_writer_per_core": round(found["folder"]["per_core"] / found["ffcv"]["per_core"], 3),
        "resume_overhead": round(resumable["with"]["journal"], 4),
        "resume_overhead_wall": round(resumable["without"]["wall"] / resumable["with"]["wall"] - 1, 4),
        "resume_overhead_every_s": every,
        "imagenet_hours_16_cores": {mode: round(each / 3600, 3) for mode, each in seconds.items()},
        "imagenet_gb": {mode: round(IMAGENET * bytes_per_image[mode] / 1e9, 1) for mode in MODES},
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, *arguments = options.measure
        if arguments:
            kind, mode, times, every = arguments
            print(json.dumps(ours(Path(folder), kind, mode, int(times), float(every))))
        else:
            print("\n" + json.dumps(ffcv(Path(folder))))
        return
    figures = compare(320, 1, 4, 1.0) if options.quick else compare(800, 2, 4, 5.0)
    columns = ("images/s per core", "kB per image", "ImageNet, GB", "16 cores, min")
    print(f"{figures['kilobytes_per_image']} kB per image".ljust(60) + "".join(f"{column:>18}" for column in columns))
    for mode in MODES:
        row = [figures["images_per_s"][mode], figures["bytes_per_image"][mode] / 1000, figures["imagenet_gb"][mode]]
        row.append(60 * figures["imagenet_hours_16_cores"][mode])
        print(TITLES[mode].ljust(60) + "".join(f"{value:>18,.1f}" for value in row))
    print(f"ours is {figures['vs_ffcv_writer']:.2f} times as fast as FFCV's writer with the settings of --reencode")
    print(f"overhead of the journal, which makes writing resumable: {figures['resume_overhead']:.1%}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
