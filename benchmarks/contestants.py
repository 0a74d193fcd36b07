"""Loaders that give random crops to 224 x 224 with flips, and loops in C that show their limits.

Each reads what `loader.py` has written into one folder: the JPEGs as files, in a .beton and in tar files, and their
pixels in a raw .beton.
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
HEIGHT, WIDTH = 350, 400  # of all images
Batches = Iterator[Any]  # arrays or tensors, (batch, ...) uint8
Make = Callable[[Path, int, int], Batches]  # folder, threads or worker processes, images of a batch


@dataclass(frozen=True)
class Contestant:
    """One way from bytes to batches."""

    title: str
    make: Make
    needs: str  # the module, or the C library, without which it is not installed
    quick: bool = True  # takes part in --quick
    real: bool = True  # a loader; else a loop that shows a limit

    @property
    def installed(self) -> bool:
        try:
            if self.needs.startswith("lib"):
                return bool(ctypes.CDLL(self.needs))
            return importlib.util.find_spec(self.needs) is not None
        except (OSError, ModuleNotFoundError):
            return False


def ours(file: str, decoder: str, folder: Path, workers: int, batch: int) -> Batches:
    """Steps of the training set as `vit.train` gets them, with the flip that training does on its device."""
    from vit.config.schema import Config, DataConfig, ModelConfig
    from vit.data.loader import TrainData
    from vit.distributed.world import ALONE

    data = DataConfig(train=folder / file, workers=workers, decoder=decoder, crop_scale=SCALE, crop_ratio=RATIO)
    model = ModelConfig(image_size=SIZE, num_classes=2)
    cfg = Config(global_batch=batch, micro_batch=batch, device="cpu", data=data, model=model)
    for each in TrainData(cfg, ALONE).batches(0, 10**9):
        yield flipped(each.images)


def flipped(images: Any) -> Any:
    """Every other image mirrored, which training does on its device: (B, S, S, 3), in place."""
    for some in images.permute(0, 3, 1, 2)[::2].split(4):  # in the cache, and with SIMD
        some.copy_(some.flip(3))
    return images


def ffcv(file: str, folder: Path, workers: int, batch: int) -> Batches:
    """Epochs of FFCV's own loader."""
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
    """torchvision's own way from an image to its crop."""
    from torchvision.transforms import v2

    crop, flip = v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()
    return v2.Compose([crop, flip, v2.PILToTensor()] if pillow else [crop, flip])


def _processes(workers: int) -> dict[str, Any]:
    """Forks, as DataLoader has them by itself, but not in a process that was spawned."""
    return {"num_workers": workers, "multiprocessing_context": "fork"}


def torchvision(pillow: bool, folder: Path, workers: int, batch: int) -> Batches:
    """Epochs of torchvision's ImageFolder in worker processes."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image

    load = {} if pillow else {"loader": lambda path: decode_image(path, ImageReadMode.RGB)}
    data = ImageFolder(folder / "images", transform=transforms(pillow), **load)
    loader = DataLoader(data, batch, shuffle=True, drop_last=True, persistent_workers=True, **_processes(workers))
    while True:
        for images, _ in loader:
            yield images


def webdataset(folder: Path, workers: int, batch: int) -> Batches:
    """Samples drawn from tar files in worker processes, shuffled as its documentation does, with Pillow."""
    import webdataset as wds

    micro_batches = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(micro_batches, resampled=True, shardshuffle=False).shuffle(256).decode("pil")
    data = data.to_tuple("jpg", "cls").map_tuple(transforms(pillow=True), int).batched(batch, partial=False)
    for images, _ in wds.WebLoader(data, batch_size=None, **_processes(workers)):
        yield images


def dali(folder: Path, workers: int, batch: int) -> Batches:
    """DALI on the CPU: its decoder for random crops, its antialiased resize."""
    import torch
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None)
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(file_root=str(folder / "images"), random_shuffle=True)
        crops = fn.decoders.image_random_crop(jpegs, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO)
        images = fn.resize(crops, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    running = pipeline(prefetch_queue_depth=2)
    running.build()
    while True:
        images, _ = running.run()
        yield torch.from_numpy(images.as_array())


def in_c(task: Callable[[int], Any], workers: int) -> Batches:
    """What a task of C code gives, again and again on each thread.  Python runs once a task, the threads never wait."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Any]] = deque()
        for turn in itertools.count():
            ahead.append(pool.submit(task, turn))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()


def our_loop(file: str, folder: Path, workers: int, batch: int) -> Batches:
    """Our decoder in C on crops that were drawn before, a batch a call: our loader, if all else were free."""
    import torch

    from vit.data.beton import open_beton
    from vit.data.decode import RandomCrop, native_library

    beton, library, local = open_beton(folder / file), native_library(), threading.local()
    assert library is not None
    memory = np.memmap(folder / file, np.uint8, "r")
    draw, crop = np.random.default_rng(0), RandomCrop(0, SCALE, RATIO)
    calls = []
    for view in range(64):
        samples = draw.choice(len(beton), batch)
        h, w, size = beton.height[samples], beton.width[samples], beton.size[samples]
        wanted = crop.windows(np.full(batch, view), samples, h, w, SIZE)
        calls.append(np.stack((beton.mode[samples], h, w, beton.offset[samples], size, *wanted), 1, dtype=np.int64))

    def task(turn: int) -> Any:
        if not hasattr(local, "out"):
            local.out = np.empty((batch, SIZE, SIZE, 3), np.uint8)
        images = calls[turn % len(calls)]
        damaged = library.vit_decode_windows(
            memory.ctypes.data, batch, images.ctypes.data, SIZE, 0, 0, local.out.ctypes.data
        )
        assert damaged == -1
        return local.out

    for out in in_c(task, workers):
        yield flipped(torch.from_numpy(out))


def libjpeg(denominator: int, folder: Path, workers: int, batch: int) -> Batches:
    """libjpeg-turbo's decoder on whole images, to 1 / `denominator` of their sides, and nothing else."""
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

    def task(turn: int) -> Any:
        if not hasattr(local, "decoder"):
            local.decoder, local.out = turbo.tjInitDecompress(), np.empty((h, w, 3), np.uint8)
        for i in range(turn * batch, (turn + 1) * batch):  # Python here is 2 microseconds an image
            jpeg = jpegs[i % len(jpegs)]
            assert turbo.tjDecompress2(local.decoder, jpeg, len(jpeg), local.out.ctypes.data, w, 0, h, 0, 0) == 0
        return range(batch)

    return in_c(task, workers)


_JPEG, _RAW = "images.beton", "raw.beton"
_with = functools.partial
CONTESTANTS = {
    "ours": Contestant(
        "ours: only the crop is decoded, Pillow's pixels", _with(ours, _JPEG, "auto"), "vit.data.loader"
    ),
    "ours_ffcv": Contestant("ours, with FFCV's decoder", _with(ours, _JPEG, "ffcv"), "vit.data.loader", quick=False),
    "stock_ffcv": Contestant("FFCV's Loader", _with(ffcv, _JPEG), "ffcv"),
    "dali": Contestant("DALI on the CPU", dali, "nvidia.dali"),
    "torchvision": Contestant("torchvision ImageFolder, Pillow", _with(torchvision, True), "torchvision"),
    "torchvision_io": Contestant("torchvision ImageFolder, torchvision.io", _with(torchvision, False), "torchvision"),
    "webdataset": Contestant("webdataset, Pillow", webdataset, "webdataset", quick=False),
    "ours_raw": Contestant("ours, raw pixels", _with(ours, _RAW, "auto"), "vit.data.loader"),
    "stock_ffcv_raw": Contestant("FFCV's Loader, raw pixels", _with(ffcv, _RAW), "ffcv", quick=False),
    "decode": Contestant("our decoder in a C loop", _with(our_loop, _JPEG), "vit.data._native", real=False),
    "decode_raw": Contestant(
        "the same, raw pixels", _with(our_loop, _RAW), "vit.data._native", quick=False, real=False
    ),
    "libjpeg": Contestant(
        "libjpeg-turbo, whole images, not resized", _with(libjpeg, 1), "libturbojpeg.so.0", quick=False, real=False
    ),
    "libjpeg_half": Contestant(
        "libjpeg-turbo, whole images to half size", _with(libjpeg, 2), "libturbojpeg.so.0", quick=False, real=False
    ),
}
