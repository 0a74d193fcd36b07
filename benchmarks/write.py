"""Writing a .beton from ILSVRC's tar: images/s and bytes in each mode, the cost of the journal, and FFCV's own writer.

python benchmarks/write.py [--quick]

The pictures are synthesized: smooth colors, edges and grain, nine of ten about 400 x 350 pixels, others up to 1500,
with 110 kB in the mean as ImageNet's.  They lie in a tar of tars as in ILSVRC2012_img_train.tar, and in folders.  Each
figure is the best of several runs, each in a process of its own, in turns; files are written to $TMPDIR.

`resume_overhead` is the share of its time that the writing process spends on the journal: the journal has a thread of
its own for the disk.  `resume_overhead_wall` compares whole runs, and tells little on a machine that others use.

images/s are per core: images over seconds of processor time, of all processes, so that a busy machine tells the same.
The whole of ImageNet (1,281,167 and 50,000 images) on 16 cores then takes

    images / (16 * images_per_s) + bytes / 2e9 seconds,

the second term for the digests at the end, if the disks keep up; and images * bytes_per_image bytes.  The last line is
one JSON object with all figures.
"""

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
CORES, DIGESTS = 16, 2e9  # bytes/s
CLASSES = 8
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "reencode": {"reencode": True},
    "raw_256": {"mode": "raw", "max_resolution": 256},
}
ABOUT = {
    "default": "default: copied up to 500 pixels, else scaled, quality 90",
    "reencode": "--reencode: all encoded again",
    "raw_256": "--mode raw --max-resolution 256",
}


def picture(number: int) -> bytes:
    """A JPEG that looks like a photograph to a codec."""
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
    """Writes `count` pictures as train.tar and in folders; returns their mean size in bytes."""
    total = 0
    with tarfile.open(folder / "train.tar", "w") as outer:
        for label in range(CLASSES):
            (folder / "images" / f"n{label:08}").mkdir(parents=True)
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(label, count, CLASSES):
                    content = picture(number)
                    total += len(content)
                    member = tarfile.TarInfo(f"n{label:08}_{number}.JPEG")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    (folder / "images" / f"n{label:08}" / member.name).write_bytes(content)
            member = tarfile.TarInfo(f"n{label:08}.tar")
            member.size = len(inner.getvalue())
            outer.addfile(member, io.BytesIO(inner.getvalue()))
    return total / count


def processor_seconds() -> float:
    """Of this process and of those of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def ours(folder: Path, kind: str, mode: str, times: int, every: float) -> dict[str, float]:
    """Write all pictures `times` times into one file, with a line of the journal `every` so many seconds."""
    import numpy as np

    from data_prep import journal
    from data_prep.beton_reader import open_beton
    from data_prep.recipe import Recipe
    from data_prep.sources.folders import image_folder
    from data_prep.sources.imagenet import ilsvrc
    from data_prep.sources.source import Source
    from data_prep.write_beton import write

    journal.EVERY = every
    kept, keep = 0.0, journal.Journal.keep

    def timed(self: journal.Journal) -> None:
        nonlocal kept
        begun = time.perf_counter()
        keep(self)
        kept += time.perf_counter() - begun

    journal.Journal.keep = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    source = ilsvrc(folder / "train.tar") if kind == "ilsvrc" else image_folder(folder / "images")
    index = time.perf_counter() - start
    count = len(source.labels) * times
    source = Source(source.classes, list(source.images) * times, np.tile(source.labels, times))
    write(source, folder / "warm-up.beton", Recipe(source="here", limit=2), 1)
    start, used = time.perf_counter(), processor_seconds()
    write(source, folder / "out.beton", Recipe(source="here", **MODES[mode]), 2)
    wall, used = time.perf_counter() - start, processor_seconds() - used
    beton = open_beton(folder / "out.beton", CLASSES)
    return {
        "wall": count / wall,
        "journal": kept / wall,
        "per_core": count / used,
        "bytes": float((beton.offset + beton.size).max() - beton.offset.min()) / count,
        "indexed": count / times / index,
    }


def ffcv(folder: Path) -> dict[str, float]:
    """FFCV's own writer, as its documentation has it for ImageNet."""
    from multiprocessing import active_children

    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder / "images"))
    fields = {"image": RGBImageField(write_mode="jpg", max_resolution=500, jpeg_quality=90), "label": IntField()}
    start, used = time.perf_counter(), processor_seconds()
    DatasetWriter(str(folder / "out.beton"), fields, num_workers=2).from_indexed_dataset(data, shuffle_indices=True)
    wall = time.perf_counter() - start
    active_children()  # waits for those that have ended, whose time is counted then
    return {"wall": len(data) / wall, "per_core": len(data) / (processor_seconds() - used)}


def best(folder: Path, runs: dict[str, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    """The best figures of each of `runs` (arguments of `ours`, or none for FFCV), taken in turns."""
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    for _ in range(rounds):
        for name, arguments in runs.items():
            command = [sys.executable, __file__, "--measure", str(folder), *arguments]
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                found[name][key] = max(found[name].get(key, 0.0), value)
    return found


def compare(count: int, rounds: int, times: int, every: float) -> dict[str, Any]:
    """All figures, of `count` pictures; `times` as many to see what a line of the journal `every` few seconds costs."""
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
    weights = {mode: found[mode]["bytes"] for mode in MODES}
    seconds = {mode: IMAGENET / (CORES * rates[mode]) + IMAGENET * weights[mode] / DIGESTS for mode in MODES}
    return {
        "images": count,
        "kilobytes_per_image": round(size / 1000, 1),
        "images_per_s": {mode: round(rate, 1) for mode, rate in rates.items()},
        "images_per_s_two_workers": {name: round(found[name]["wall"], 1) for name in found},
        "bytes_per_image": {mode: round(weight) for mode, weight in weights.items()},
        "indexed_per_s": round(max(found[mode]["indexed"] for mode in MODES)),
        "vs_ffcv_writer": round(found["folder"]["wall"] / found["ffcv"]["wall"], 3),
        "vs_ffcv_writer_per_core": round(found["folder"]["per_core"] / found["ffcv"]["per_core"], 3),
        "resume_overhead": round(resumable["with"]["journal"], 4),
        "resume_overhead_wall": round(resumable["without"]["wall"] / resumable["with"]["wall"] - 1, 4),
        "resume_overhead_every_s": every,
        "imagenet_hours_16_cores": {mode: round(each / 3600, 3) for mode, each in seconds.items()},
        "imagenet_gb": {mode: round(IMAGENET * weights[mode] / 1e9, 1) for mode in MODES},
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Prints a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
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
    columns = ("images/s a core", "kB an image", "ImageNet, GB", "on 16 cores, min")
    print(f"{figures['kilobytes_per_image']} kB an image".ljust(60) + "".join(f"{column:>18}" for column in columns))
    for mode in MODES:
        row = figures["images_per_s"][mode], figures["bytes_per_image"][mode] / 1000, figures["imagenet_gb"][mode]
        row = (*row, 60 * figures["imagenet_hours_16_cores"][mode])
        print(ABOUT[mode].ljust(60) + "".join(f"{value:>18,.1f}" for value in row))
    print(f"FFCV's writer, same settings as --reencode: ours is {figures['vs_ffcv_writer']:.2f} times as fast")
    print(f"a journal to go on from costs {figures['resume_overhead']:.1%}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
