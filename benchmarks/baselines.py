"""The loaders that loader.py compares: ours, the baselines, and decoder loops in C as upper bounds.

All give random crops of 224 x 224 with flips.  They read the files that loader.py has written into one folder: JPEGs as
files, in a .beton and in tar files, and their pixels in a raw .beton.
"""

import ctypes
import functools
import importlib.util
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE, SCALE, RATIO = 224, (0.08, 1.0), (3 / 4, 4 / 3)
HEIGHT, WIDTH = 350, 400  # of all images, in pixels
Batches = Iterator[Any]  # arrays or tensors, (batch, ...) uint8
Make = Callable[[Path, int, int], Batches]  # folder, number of threads or worker processes, batch size


@dataclass(frozen=True)
class Candidate:
    """A loader, or a decoder loop, to be measured."""

    title: str
    make: Make
    needs: str  # module or C library that must be installed
    quick: bool = True  # included in --quick
    real: bool = True  # a loader; False: a decoder loop, an upper bound for loaders

    @property
    def installed(self) -> bool:
        try:
            if self.needs.startswith("lib"):
                return bool(ctypes.CDLL(self.needs))
            return importlib.util.find_spec(self.needs) is not None
        except (OSError, ModuleNotFoundError):
            return False


def ours(file: str, decoder: str, folder: Path, workers: int, batch: int) -> Batches:
    """Our training loader as `vit.train` uses it, and the flip, which training does on the device."""
    from vit.config.schema import Config
    from vit.config.sections import DataConfig, ModelConfig
    from vit.data.loader import TrainData
    from vit.distributed.world import SINGLE_RANK

    data = DataConfig(train=folder / file, workers=workers, decoder=decoder, crop_scale=SCALE, crop_ratio=RATIO)
    model = ModelConfig(image_size=SIZE, num_classes=2)
    cfg = Config(global_batch=batch, micro_batch=batch, device="cpu", data=data, model=model)
    for step in TrainData(cfg, SINGLE_RANK).batches(0, 10**9):
        yield flip_every_other(step.images)


def flip_every_other(images: Any) -> Any:
    """Mirrors every other image in place: (B, S, S, 3)."""
    for part in images.permute(0, 3, 1, 2)[::2].split(4):  # four at a time stay in the CPU cache and use SIMD
        part.copy_(part.flip(3))
    return images


def ffcv(file: str, folder: Path, workers: int, batch: int) -> Batches:
    """FFCV's `Loader`, epoch after epoch."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    image = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip(), ToTensor()]
    pipelines = {"image": image, "label": [IntDecoder(), ToTensor()]}
    options = {"batch_size": batch, "num_workers": workers, "order": OrderOption.RANDOM, "drop_last": True}
    loader = Loader(str(folder / file), pipelines=pipelines, os_cache=True, **options)
    while True:
        for images, _ in loader:
            yield images


def transforms(pillow: bool) -> Callable[[Any], Any]:
    """torchvision's random crop and flip."""
    from torchvision.transforms import v2

    crop, flip = v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()
    return v2.Compose([crop, flip, v2.PILToTensor()] if pillow else [crop, flip])


def _worker_options(workers: int) -> dict[str, Any]:
    """Worker processes are forked, which is not the DataLoader's default in a spawned process."""
    return {"num_workers": workers, "multiprocessing_context": "fork"}


def torchvision(pillow: bool, folder: Path, workers: int, batch: int) -> Batches:
    """torchvision's ImageFolder in worker processes, epoch after epoch."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image

    load = {} if pillow else {"loader": lambda path: decode_image(path, ImageReadMode.RGB)}
    data = ImageFolder(folder / "images", transform=transforms(pillow), **load)
    loader = DataLoader(data, batch, shuffle=True, drop_last=True, persistent_workers=True, **_worker_options(workers))
    while True:
        for images, _ in loader:
            yield images


def webdataset(folder: Path, workers: int, batch: int) -> Batches:
    """webdataset with Pillow in worker processes; tar files are resampled and shuffled as in its documentation."""
    import webdataset as wds

    tar_files = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(tar_files, resampled=True, shardshuffle=False).shuffle(256).decode("pil")
    data = data.to_tuple("jpg", "cls").map_tuple(transforms(pillow=True), int).batched(batch, partial=False)
    for images, _ in wds.WebLoader(data, batch_size=None, **_worker_options(workers)):
        yield images


def dali(folder: Path, workers: int, batch: int) -> Batches:
    """DALI on the CPU, with its random-crop decoder and antialiased resize."""
    import torch
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None)
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(file_root=str(folder / "images"), random_shuffle=True)
        crops = fn.decoders.image_random_crop(jpegs, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO)
        images = fn.resize(crops, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    built = pipeline(prefetch_queue_depth=2)
    built.build()
    while True:
        images, _ = built.run()
        yield torch.from_numpy(images.as_array())


def in_threads(task: Callable[[int], Any], workers: int) -> Batches:
    """Runs a task of C code repeatedly on each thread and yields its results.  The threads never wait for Python."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Any]] = deque()
        for number in itertools.count():
            pending.append(pool.submit(task, number))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()


def decoder_loop(file: str, folder: Path, workers: int, batch: int) -> Batches:
    """Our decoder in C on precomputed crops, one call per batch: the speed of our loader without any overhead."""
    import torch

    from vit.data.beton import open_beton
    from vit.data.decode import RandomCrop, native_library

    beton, library, local = open_beton(folder / file), native_library(), threading.local()
    assert library is not None
    memory = np.memmap(folder / file, np.uint8, "r")
    random, crop = np.random.default_rng(0), RandomCrop(0, SCALE, RATIO)
    calls = []
    for view in range(64):
        samples = random.choice(len(beton), batch)
        h, w, size = beton.height[samples], beton.width[samples], beton.size[samples]
        windows = crop.windows(np.full(batch, view), samples, h, w, SIZE)
        calls.append(np.stack((beton.mode[samples], h, w, beton.offset[samples], size, *windows), 1, dtype=np.int64))

    def task(number: int) -> Any:
        if not hasattr(local, "out"):
            local.out = np.empty((batch, SIZE, SIZE, 3), np.uint8)
        images = calls[number % len(calls)]
        damaged = library.vit_decode_windows(
            memory.ctypes.data, batch, images.ctypes.data, SIZE, 0, 0, local.out.ctypes.data
        )
        assert damaged == -1
        return local.out

    for out in in_threads(task, workers):
        yield flip_every_other(torch.from_numpy(out))


def libjpeg(denominator: int, folder: Path, workers: int, batch: int) -> Batches:
    """libjpeg-turbo's decoder alone, on whole images, scaled by 1 / `denominator`."""
    turbo, local = ctypes.CDLL("libturbojpeg.so.0"), threading.local()
    turbo.tjInitDecompress.restype = ctypes.c_void_p
    turbo.tjDecompress2.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        *5 * [ctypes.c_int],
    ]
    jpegs = [path.read_bytes() for path in sorted((folder / "images").rglob("*.jpg"))]
    h, w = HEIGHT // denominator, WIDTH // denominator

    def task(number: int) -> Any:
        if not hasattr(local, "decoder"):
            local.decoder, local.out = turbo.tjInitDecompress(), np.empty((h, w, 3), np.uint8)
        for i in range(number * batch, (number + 1) * batch):  # Python adds 2 microseconds per image
            jpeg = jpegs[i % len(jpegs)]
            assert turbo.tjDecompress2(local.decoder, jpeg, len(jpeg), local.out.ctypes.data, w, 0, h, 0, 0) == 0
        return range(batch)

    return in_threads(task, workers)


_JPEG, _RAW = "images.beton", "raw.beton"
_with = functools.partial
CANDIDATES = {
    "ours": Candidate(
        "ours: decodes only the crop, same pixels as Pillow", _with(ours, _JPEG, "auto"), "vit.data.loader"
    ),
    "ours_ffcv": Candidate("ours, with FFCV's decoder", _with(ours, _JPEG, "ffcv"), "vit.data.loader", quick=False),
    "stock_ffcv": Candidate("FFCV's Loader", _with(ffcv, _JPEG), "ffcv"),
    "dali": Candidate("DALI on the CPU", dali, "nvidia.dali"),
    "torchvision": Candidate("torchvision ImageFolder, Pillow", _with(torchvision, True), "torchvision"),
    "torchvision_io": Candidate("torchvision ImageFolder, torchvision.io", _with(torchvision, False), "torchvision"),
    "webdataset": Candidate("webdataset, Pillow", webdataset, "webdataset", quick=False),
    "ours_raw": Candidate("ours, raw pixels", _with(ours, _RAW, "auto"), "vit.data.loader"),
    "stock_ffcv_raw": Candidate("FFCV's Loader, raw pixels", _with(ffcv, _RAW), "ffcv", quick=False),
    "decode": Candidate("our decoder in a C loop", _with(decoder_loop, _JPEG), "vit.data._native", real=False),
    "decode_raw": Candidate(
        "the same, raw pixels", _with(decoder_loop, _RAW), "vit.data._native", quick=False, real=False
    ),
    "libjpeg": Candidate(
        "libjpeg-turbo, whole images, not resized", _with(libjpeg, 1), "libturbojpeg.so.0", quick=False, real=False
    ),
    "libjpeg_half": Candidate(
        "libjpeg-turbo, whole images at half size", _with(libjpeg, 2), "libturbojpeg.so.0", quick=False, real=False
    ),
}
