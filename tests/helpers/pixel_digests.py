"""Digests of all that the C++ parts compute, to compare processors, compilers and versions of libjpeg-turbo.

    python -m tests.helpers.pixel_digests CASES.npz

prints one JSON object: a digest for each kind of result.  It needs numpy and the built C++ parts, but not torch, which
takes a minute to import on an emulated processor.  `write_cases` makes the file of cases.
"""

import ctypes
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit.data.ffcv_format import JPEG, RAW
from vit.data.native import decode_jpeg, native_jpeg_library, native_library

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((64, 64), (33, 47), (1, 9), (224, 224))  # pixels, of the images that are augmented
SIDES = (16, 64, 224)  # of decoded crops


def write_cases(path: Path, count: int = 60) -> None:
    """Writes images and crops: JPEGs of every common kind, photographs and noise, sizes from 1 to 600 pixels."""
    from PIL import Image

    random, arrays = np.random.default_rng(22), {}
    kinds: list[dict[str, Any]] = [
        *({"quality": q, "subsampling": s, "progressive": p} for q in (30, 85) for s in (0, 1, 2) for p in (0, 1)),
        *({"quality": 100, "subsampling": 0}, {"quality": 90, "optimize": True}, {"restart_marker_rows": 2}),
    ]
    for i in range(count):
        height, width = (int(n) for n in random.integers(1, 601 if i % 3 else 60, 2))
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][:, :, :, None]
        smooth = (
            128
            + 90 * np.sin(random.uniform(1, 30, 3) * x + random.uniform(1, 30, 3) * y)
            + random.normal(0, random.choice([1, 12, 60]), (height, width, 3))
        )
        pixels = smooth.clip(0, 255).astype(np.uint8)
        file, gray = io.BytesIO(), i % 10 == 9
        Image.fromarray(pixels[:, :, 0] if gray else pixels).save(file, "JPEG", **kinds[i % len(kinds)])
        arrays[f"jpeg{i}"] = np.frombuffer(file.getvalue(), np.uint8)
        arrays[f"raw{i}"] = pixels
        arrays[f"windows{i}"] = np.array([_window(random, height, width) for _ in range(8)])
    for H, W in SIZES:
        name = f"{H}x{W}"
        arrays[f"images {name}"] = random.integers(0, 256, (16, 3, H, W), np.uint8)
        arrays[f"tables {name}"] = random.integers(0, 256, (16, 3, 256), np.uint8)
        arrays[f"amounts {name}"] = random.uniform(-1, 1, 16).astype(np.float32)
        turn = random.uniform(-1.5, 1.5, (16, 6)) * (1, 1, W / 3, 1, 1, H / 3)
        arrays[f"matrices {name}"] = turn
        arrays[f"shifts {name}"] = random.integers(-W, W + 1, (16, 2))
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _window(random: np.random.Generator, height: int, width: int) -> list[int]:
    """A box (top, left, height, width), its size after resizing, and the corner of the output in it."""
    h, w = int(random.integers(1, height + 1)), int(random.integers(1, width + 1))
    return [int(random.integers(0, height - h + 1)), int(random.integers(0, width - w + 1)), h, w]


def digests(cases: Path) -> dict[str, str]:
    """The digest of each kind of result: of the same bytes on every machine."""
    found: dict[str, Any] = {}
    with np.load(cases) as arrays:
        for name, result in (*_decoded(arrays), *_augmented(arrays)):
            found.setdefault(name, hashlib.sha256()).update(result.tobytes())
    return {name: digest.hexdigest() for name, digest in found.items()}


def _decoded(arrays: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Whole JPEGs, and windows of JPEGs and of raw images, with each filter."""
    library = native_library()
    assert library is not None, "the C++ decoder was not built"
    for i in range(sum(name.startswith("jpeg") for name in arrays)):
        jpeg, raw = arrays[f"jpeg{i}"], np.ascontiguousarray(arrays[f"raw{i}"])
        height, width, _ = raw.shape
        whole = decode_jpeg(jpeg.tobytes(), height, width)
        yield "whole JPEGs", np.append(whole.pixels, np.uint8(whole.state))
        for mode, content in ((JPEG, jpeg), (RAW, raw)):
            for box in arrays[f"windows{i}"].tolist():
                for S in SIDES:
                    image = np.array([mode, height, width, 0, content.nbytes, *box, S, S, 0, 0], np.int64)
                    for cubic, scaled in ((0, 0), (1, 0), (0, 1)):
                        out = np.zeros((S, S, 3), np.uint8)
                        arguments = image.ctypes.data, S, scaled, cubic, out.ctypes.data
                        failed = library.vit_decode_windows(content.ctypes.data, 1, *arguments)
                        name = f"{'raw' if mode else 'JPEG'}, {'bicubic' if cubic else 'bilinear'}{', scaled' * scaled}"
                        yield name, np.append(out, np.uint8(failed == -1))


def _augmented(arrays: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every function of `pixel_ops.cpp`."""
    (path,) = (ROOT / "vit" / "augment").glob(f"_pixel_ops*{_suffix()}")
    library, pointer, i64 = ctypes.CDLL(str(path)), ctypes.c_void_p, ctypes.c_int64
    fill, at = np.array([124, 116, 104], np.uint8), np.arange(16)[::2].copy()
    for H, W in SIZES:
        size, name = (i64(len(at)), i64(H), i64(W)), f"{H}x{W}"
        images = arrays[f"images {name}"]

        def changed(function: str, *values: NDArray[Any]) -> tuple[str, NDArray[Any]]:
            out = images.copy()  # noqa: B023  # called in this pass of the loop
            pointers = (pointer(value.ctypes.data) for value in values)
            call = pointer(out.ctypes.data), pointer(at.ctypes.data), *size, *pointers  # noqa: B023
            getattr(library, function)(*call)
            return function, out

        yield changed("vit_lookup", arrays[f"tables {name}"])
        yield changed("vit_color", arrays[f"amounts {name}"])
        yield changed("vit_sharpness", arrays[f"amounts {name}"])
        yield changed("vit_warp", arrays[f"matrices {name}"], fill)
        yield changed("vit_shift", arrays[f"shifts {name}"], fill)
        sums, extremes = np.zeros(len(at), np.int64), np.zeros((2, len(at), 3), np.uint8)
        histogram = np.zeros((len(at), 3, 256), np.int32)
        for function, out in (("gray_sums", sums), ("extremes", extremes), ("histogram", histogram)):
            changed(f"vit_{function}", out)
            yield f"vit_{function}", out
        batch, mirrored = np.ascontiguousarray(images.transpose(0, 2, 3, 1)), (np.arange(16) % 2).astype(np.uint8)
        planes, normalized = np.zeros_like(images), np.zeros(images.shape, np.float32)
        whole = i64(16), i64(H), i64(W)
        arguments = (pointer(array.ctypes.data) for array in (mirrored, planes))
        library.vit_planes(pointer(batch.ctypes.data), *whole, *arguments)
        yield "vit_planes", planes
        mean, std = np.array([123.7, 116.3, 103.5], np.float32), np.array([58.4, 57.1, 57.4], np.float32)
        arguments = (pointer(array.ctypes.data) for array in (mean, std, normalized))
        library.vit_normalize(pointer(images.ctypes.data), *whole, *arguments)
        yield "vit_normalize", normalized
        for S in range(1, H, 13) if H == W else ():
            small = np.zeros((16, 3, S, S), np.uint8)
            library.vit_lanczos(pointer(images.ctypes.data), i64(16), i64(H), i64(S), pointer(small.ctypes.data))
            yield "vit_lanczos", small


def _suffix() -> str:
    """The suffix of this Python's extensions."""
    from importlib.machinery import EXTENSION_SUFFIXES

    return EXTENSION_SUFFIXES[0]


if __name__ == "__main__":
    print(json.dumps({"libjpeg": str(native_jpeg_library()), "digests": digests(Path(sys.argv[1]))}))
