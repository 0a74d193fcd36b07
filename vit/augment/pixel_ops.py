"""Pixel operations of augmentation: in torch for any device, and for CPUs in C++ (`pixel_ops.cpp`), with equal bytes.

Shapes: B images of a batch, n selected images, H, W pixels.
"""

import ctypes
import functools
import importlib.machinery
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vit.augment.gpu_kernels import gpu_warp

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Color = tuple[int, int, int]  # gray levels of red, green and blue


@dataclass(frozen=True)
class Selection:
    """Selected images of a batch, changed in place.

    `color` and `sharpness` compute image + (image - other) * amount: a positive amount increases the difference to the
    other image, -1 replaces the image by it.
    """

    images: Tensor  # (B, 3, H, W) uint8
    indices: Ints  # (n,), ascending

    def __len__(self) -> int:
        return len(self.indices)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replaces the images by a torch function of them: (n, 3, H, W) uint8 -> the same."""
        if len(self.indices) == len(self.images):  # all of them
            self.images.copy_(function(self.images))
        else:
            indices = torch.from_numpy(self.indices)
            self.images.index_copy_(0, indices, function(self.images.index_select(0, indices)))

    def to_device(self, values: NDArray[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        """Copies values to the device, in a shape that broadcasts with images: (n, ...) -> (n, ..., 1, 1, 1)."""
        numbers = torch.from_numpy(values).to(dtype).to(self.images.device, non_blocking=True)
        return numbers.view(*numbers.shape, 1, 1, 1)

    def lookup(self, tables: Tensor) -> None:
        """Replaces each level by its entry in a table per image and channel: (1 or n, 1 or 3, 256) uint8."""
        expanded = tables.expand(len(self), 3, 256)
        if not self._call("vit_lookup", expanded.contiguous()):
            self.apply(lambda images: expanded.gather(2, images.flatten(2).long()).view_as(images))

    def color(self, amount: NDArray[np.float32]) -> None:
        """Blends each image with its grayscale version: (n,)."""
        if not self._call("vit_color", torch.from_numpy(amount)):
            self.apply(lambda images: _blend(images, gray(images), self.to_device(amount)))

    def sharpness(self, amount: NDArray[np.float32]) -> None:
        """Blends each image with its smoothed version: (n,)."""
        if not self._call("vit_sharpness", torch.from_numpy(amount)):
            self.apply(lambda images: _blend(images, _smooth(images), self.to_device(amount)))

    def warp(self, matrices: Floats, fill: Color) -> None:
        """Affine warp with bilinear interpolation: (n, 6) of a to f.

        The output at (x, y) is the input at (a x + b y + c, d y + e x + f), both in pixels from the image's center.
        `fill` is the color outside of the image.
        """
        color = torch.tensor(fill, dtype=torch.uint8)
        if self._call("vit_warp", torch.from_numpy(matrices), color):
            return
        on_device = self.to_device(matrices, torch.float64)  # (n, 6, 1, 1, 1)
        kernel = gpu_warp() if type(self.images) is Tensor and self.images.is_cuda else None
        if kernel is None:
            self.apply(lambda images: _warp(images, on_device[..., 0], fill))
        else:
            self.apply(lambda images: kernel(images, on_device.flatten(1), fill))

    def shift(self, by: Ints, fill: Color) -> None:
        """Moves each image by whole pixels to the right and down: (n, 2).  `fill` is the color outside of the image."""
        color = torch.tensor(fill, dtype=torch.uint8)
        if not self._call("vit_shift", torch.from_numpy(by), color):
            self.apply(lambda images: _shift(images, self.to_device(by, torch.int64)[..., 0], fill))

    def gray_sums(self) -> Tensor:
        """Sum of the gray levels of each image: (n,) int64."""
        sums = torch.empty(len(self), dtype=torch.int64)
        return sums if self._call("vit_gray_sums", sums) else gray(self._selected()).sum((1, 2, 3))

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest level of each channel: (n, 3) uint8 each."""
        found = torch.empty(2, len(self), 3, dtype=torch.uint8)
        if self._call("vit_extremes", found):
            return found[0], found[1]
        images = self._selected()
        return images.amin((2, 3)), images.amax((2, 3))

    def histogram(self) -> Tensor:
        """Number of pixels of each level in each channel: (n, 3, 256) int32."""
        counts = torch.zeros(len(self), 3, 256, dtype=torch.int32, device=self.images.device)
        if not self._call("vit_histogram", counts):
            index = self._selected().flatten(2).long()
            one = torch.ones((), dtype=torch.int32, device=index.device)
            counts.scatter_add_(2, index, one.expand_as(index))
        return counts

    def _selected(self) -> Tensor:
        if len(self.indices) == len(self.images):
            return self.images
        return self.images.index_select(0, torch.from_numpy(self.indices))

    def _call(self, name: str, *values: Tensor) -> bool:
        """Runs a function of `pixel_ops.cpp`; False if it cannot be used for these images."""
        library = native_library(self.images)
        if library is None:
            return False
        _, _, H, W = self.images.shape
        pointers = (value.data_ptr() for value in values)
        getattr(library, name)(self.images.data_ptr(), self.indices.ctypes.data, len(self), H, W, *pointers)
        return True


def apply_by_choice(images: Tensor, choice: Ints, run: Callable[[Selection, int, Ints], None]) -> Tensor:
    """Calls `run(selection, choice, indices)` for the images of each choice: (B, 3, H, W) uint8, (B,) -> (B, 3, H, W).

    `run` changes the selection in place; `indices` are the indices of its images in the batch.  `images` may be
    overwritten.
    """
    order = np.argsort(choice, kind="stable")
    edges = np.flatnonzero(np.diff(choice[order], prepend=-1, append=-1)).tolist()
    groups = [(int(choice[order[start]]), slice(start, stop)) for start, stop in itertools.pairwise(edges)]
    if native_library(images):
        for which, group in groups:
            run(Selection(images, order[group]), which, order[group])
        return images
    forward, inverse = torch.from_numpy(np.stack((order, np.argsort(order)))).to(images.device, non_blocking=True)
    grouped = images.index_select(0, forward)  # copies whole images; images[forward] would gather pixel by pixel
    for which, group in groups:
        for chunk in chunks(group.start, group.stop, images.device):
            run(Selection(grouped[chunk], np.arange(chunk.stop - chunk.start)), which, order[chunk])
    return grouped.index_select(0, inverse)


def chunks(start: int, stop: int, device: torch.device) -> list[slice]:
    """Splits a range of images.  On a CPU into small chunks, whose temporaries fit into the cache: twice as fast."""
    size = 4 if device.type == "cpu" else stop - start
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def to_planes(batch: Tensor, mirrored: NDArray[np.bool_]) -> Tensor:
    """Moves channels first and flips the `mirrored` images horizontally: (B, H, W, 3) uint8, (B,) -> (B, 3, H, W)."""
    B, H, W, _ = batch.shape
    if library := native_library(batch):
        out = torch.empty(B, 3, H, W, dtype=torch.uint8)
        library.vit_planes(batch.data_ptr(), B, H, W, mirrored.ctypes.data, out.data_ptr())
        return out

    def mirror(selection: Selection, flip: int, _: Ints) -> None:
        if flip:
            selection.apply(lambda images: images.flip(3))

    return apply_by_choice(batch.permute(0, 3, 1, 2).contiguous(), mirrored.astype(np.int64), mirror)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images - mean) / std: (B, 3, H, W) uint8, (1, 3, 1, 1), (1, 3, 1, 1) -> (B, 3, H, W) float32."""
    B, _, H, W = images.shape
    out = torch.empty(images.shape, device=images.device)
    if library := native_library(images):
        library.vit_normalize(images.data_ptr(), B, H, W, mean.data_ptr(), std.data_ptr(), out.data_ptr())
        return out
    for chunk in chunks(0, len(images), images.device):
        torch.sub(images[chunk], mean, out=out[chunk]).div_(std)
    return out


def gray(images: Tensor) -> Tensor:
    """Gray levels with torchvision's weights: (n, 3, H, W) uint8 -> (n, 1, H, W) uint8."""
    red, green, blue = images.float().unbind(1)
    levels: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return levels.to(torch.uint8)[:, None]


def native_library(images: Tensor) -> ctypes.CDLL | None:
    """The C++ library, if it was built and can work on these images: contiguous, on the CPU, not a tensor subclass."""
    supported = type(images) is Tensor and images.device.type == "cpu" and images.is_contiguous()
    return _library() if supported else None


# ------------------------------------------------------------------------------------------ implementations in torch


def _blend(images: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    """images + (images - other) * amount; `other` broadcasts: (n, 3, H, W) uint8 -> the same."""
    levels = images.float()
    difference = (levels - other.float()).mul_(amount)  # exactly 0 where both are equal
    return levels.add_(difference).clamp_(0, 255).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels, the center weighted 5 times; the border is kept: (n, 3, H, W) uint8 -> the same."""
    # Exact, since all sums are integers.  A convolution could run in TF32, or in another order on another device.
    levels = images.float()
    rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    box = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(levels[..., 1:-1, 1:-1], alpha=4)
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = box.add_(6.5).mul_(1 / 13)  # rounds when truncated to uint8; no ties, as 13 is odd
    return smooth


def _warp(images: Tensor, matrices: Tensor, fill: Color) -> Tensor:
    """(n, 3, H, W) uint8, (n, 6, 1, 1) float64 -> (n, 3, H, W) uint8."""
    H, W = images.shape[2:]
    a, b, c, d, e, f = matrices.unbind(1)  # of (n, 1, 1)
    x = torch.arange(W, dtype=torch.float64, device=images.device) - (W - 1) / 2
    y = torch.arange(H, dtype=torch.float64, device=images.device)[:, None] - (H - 1) / 2
    from_x, from_y = a * x + b * y + c + (W - 1) / 2, d * y + e * x + f + (H - 1) / 2  # (n, H, W)
    left, top = (
        (from_x + 1e-9).floor(),
        (from_y + 1e-9).floor(),
    )  # so that integer positions stay integers despite rounding
    total = torch.zeros(images.shape, device=images.device)
    for column, across in ((left, left + 1 - from_x), (left + 1, from_x - left)):
        for row, down in ((top, top + 1 - from_y), (top + 1, from_y - top)):
            weight = (across * down).clamp_(0, 1).float()
            total.addcmul_(_gather(images, row, column, fill).float(), weight[:, None])
    return total.round_().to(torch.uint8)


def _shift(images: Tensor, by: Tensor, fill: Color) -> Tensor:
    """(n, 3, H, W) uint8, (n, 2, 1, 1) int64 -> (n, 3, H, W) uint8."""
    right, down = by.unbind(1)
    H, W = images.shape[2:]
    column = torch.arange(W, device=images.device) - right  # (n, 1, W)
    row = torch.arange(H, device=images.device)[:, None] - down  # (n, H, 1)
    return _gather(images, row.expand(-1, H, W), column.expand(-1, H, W), fill)


def _gather(images: Tensor, row: Tensor, column: Tensor, fill: Color) -> Tensor:
    """The pixels at (row, column), `fill` outside: (n, 3, H, W) uint8, (n, H, W), (n, H, W) -> (n, 3, H, W) uint8."""
    H, W = images.shape[2:]
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    position = torch.where(inside, row * W + column, H * W).long().flatten(1)[:, None].expand(-1, 3, -1)
    flat = F.pad(images.flatten(2), (0, 1))
    for channel, level in enumerate(fill):  # Python numbers are passed to the kernel, so nothing is copied
        flat[:, channel, -1] = level
    return flat.gather(2, position).view_as(images)


# ------------------------------------------------------------------------------------------ the C++ library

_ONE_POINTER = (
    "lookup",
    "color",
    "sharpness",
    "gray_sums",
    "extremes",
    "histogram",
)  # functions of (selection, values)
_TWO_POINTERS = ("warp", "shift")  # functions of (selection, values, fill)


@functools.cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.machinery.PathFinder.find_spec("_pixel_ops", [str(Path(__file__).parent)])
    if spec is None or spec.origin is None:
        return None
    return declare_signatures(ctypes.CDLL(spec.origin))


def declare_signatures(library: ctypes.CDLL) -> ctypes.CDLL:
    """Sets the argument types of the functions of `pixel_ops.cpp`."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for names, pointers in ((_ONE_POINTER, 1), (_TWO_POINTERS, 2)):
        for name in names:
            getattr(library, f"vit_{name}").argtypes = [pointer, pointer, size, size, size, *pointers * [pointer]]
    library.vit_planes.argtypes = [pointer, size, size, size, pointer, pointer]
    library.vit_lanczos.argtypes = [pointer, size, size, size, pointer]
    library.vit_normalize.argtypes = [pointer, size, size, size, pointer, pointer, pointer]
    return library
