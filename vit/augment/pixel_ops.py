"""What augmentation does to pixels: in torch for any device, and on CPUs in C++, to the same bytes (`pixel_ops.cpp`).

Shapes: B images of a batch, n of them that are changed alike, H, W pixels.
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

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Color = tuple[int, int, int]  # gray levels of red, green and blue


@dataclass(frozen=True)
class Part:
    """Some images of a batch, to be changed in place."""

    images: Tensor  # (B, 3, H, W) uint8
    at: Ints  # (n,), which of them

    def __len__(self) -> int:
        return len(self.at)

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """By any function in torch: (n, 3, H, W) uint8 -> the same."""
        if len(self.at) == len(self.images):  # all of them, in their order
            self.images.copy_(function(self.images))
        else:
            place = torch.from_numpy(self.at)
            self.images.index_copy_(0, place, function(self.images.index_select(0, place)))

    def there(self, values: NDArray[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers of each image on its device, for images to be multiplied by: (n, ...) -> (n, ..., 1, 1, 1)."""
        numbers = torch.from_numpy(values).to(dtype).to(self.images.device, non_blocking=True)
        return numbers.view(*numbers.shape, 1, 1, 1)

    def lookup(self, tables: Tensor) -> None:
        """Each pixel becomes its entry in its table: (1 or n, 1 or 3, 256) uint8."""
        whole = tables.expand(len(self), 3, 256)
        if not self._call("vit_lookup", whole.contiguous()):
            self.change(lambda images: whole.gather(2, images.flatten(2).long()).view_as(images))

    def color(self, amount: NDArray[np.float32]) -> None:
        """Away from, or by amounts below 0 toward, its gray: (n,)."""
        if not self._call("vit_color", torch.from_numpy(amount)):
            self.change(lambda images: _blend(images, gray(images), self.there(amount)))

    def sharpness(self, amount: NDArray[np.float32]) -> None:
        """Away from, or by amounts below 0 toward, its smoothed version: (n,)."""
        if not self._call("vit_sharpness", torch.from_numpy(amount)):
            self.change(lambda images: _blend(images, _smooth(images), self.there(amount)))

    def warp(self, matrices: Floats, fill: Color) -> None:
        """Resamples bilinearly: what is at (x, y) comes from (a x + b y + c, d y + e x + f): (n, 6) of a to f.

        Both are counted in pixels from the image's center; outside of the image is `fill`.
        """
        color = torch.tensor(fill, dtype=torch.uint8)
        if not self._call("vit_warp", torch.from_numpy(matrices), color):
            self.change(lambda images: _warp(images, self.there(matrices, torch.float64)[..., 0], fill))

    def shift(self, by: Ints, fill: Color) -> None:
        """Moves by whole pixels to the right and down: (n, 2)."""
        color = torch.tensor(fill, dtype=torch.uint8)
        if not self._call("vit_shift", torch.from_numpy(by), color):
            self.change(lambda images: _shift(images, self.there(by, torch.int64)[..., 0], fill))

    def gray_sums(self) -> Tensor:
        """The sum of the gray levels of each image: (n,) int64."""
        sums = torch.empty(len(self), dtype=torch.int64)
        return sums if self._call("vit_gray_sums", sums) else gray(self._chosen()).sum((1, 2, 3))

    def extremes(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest level of each channel: (n, 3) uint8 each."""
        found = torch.empty(2, len(self), 3, dtype=torch.uint8)
        if self._call("vit_extremes", found):
            return found[0], found[1]
        images = self._chosen()
        return images.amin((2, 3)), images.amax((2, 3))

    def histogram(self) -> Tensor:
        """How many pixels of each channel have each level: (n, 3, 256) int32."""
        counts = torch.zeros(len(self), 3, 256, dtype=torch.int32, device=self.images.device)
        if not self._call("vit_histogram", counts):
            index = self._chosen().flatten(2).long()
            one = torch.ones((), dtype=torch.int32, device=index.device)
            counts.scatter_add_(2, index, one.expand_as(index))
        return counts

    def _chosen(self) -> Tensor:
        return (
            self.images if len(self.at) == len(self.images) else self.images.index_select(0, torch.from_numpy(self.at))
        )

    def _call(self, name: str, *values: Tensor) -> bool:
        """Runs a function of `pixel_ops.cpp`; False if it is not for these images."""
        library = native(self.images)
        if library is None:
            return False
        _, _, H, W = self.images.shape
        pointers = (value.data_ptr() for value in values)
        getattr(library, name)(self.images.data_ptr(), self.at.ctypes.data, len(self), H, W, *pointers)
        return True


def by_choice(images: Tensor, choice: Ints, run: Callable[[Part, int, Ints], None]) -> Tensor:
    """Has `run(part, choice, indices)` change the images of each choice: (B, 3, H, W) uint8 -> the same.

    The images given may be overwritten.
    """
    order = np.argsort(choice, kind="stable")
    edges = np.flatnonzero(np.diff(choice[order], prepend=-1, append=-1)).tolist()
    groups = [(int(choice[order[start]]), slice(start, stop)) for start, stop in itertools.pairwise(edges)]
    if native(images):
        for which, group in groups:
            run(Part(images, order[group]), which, order[group])
        return images
    there, back = torch.from_numpy(np.stack((order, np.argsort(order)))).to(images.device, non_blocking=True)
    together = images.index_select(0, there)  # copies whole images, where images[there] would go from pixel to pixel
    for which, group in groups:
        for some in pieces(group.start, group.stop, images.device):
            run(Part(together[some], np.arange(some.stop - some.start)), which, order[some])
    return together.index_select(0, back)


def pieces(start: int, stop: int, device: torch.device) -> list[slice]:
    """A range of images, a few at a time on a CPU, whose cache then holds their temporaries: twice as fast."""
    size = 4 if device.type == "cpu" else stop - start
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def planes(batch: Tensor, mirrored: NDArray[np.bool_]) -> Tensor:
    """Each channel by itself, mirrored left to right where `mirrored` is: (B, H, W, 3) uint8, (B,) -> (B, 3, H, W)."""
    B, H, W, _ = batch.shape
    if library := native(batch):
        out = torch.empty(B, 3, H, W, dtype=torch.uint8)
        library.vit_planes(batch.data_ptr(), B, H, W, mirrored.ctypes.data, out.data_ptr())
        return out

    def mirror(part: Part, flip: int, _: Ints) -> None:
        if flip:
            part.change(lambda images: images.flip(3))

    return by_choice(batch.permute(0, 3, 1, 2).contiguous(), mirrored.astype(np.int64), mirror)


def normalize(images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Subtracts and divides, for each channel: (B, 3, H, W) uint8, (1, 3, 1, 1) twice -> (B, 3, H, W) float32."""
    B, _, H, W = images.shape
    out = torch.empty(images.shape, device=images.device)
    if library := native(images):
        library.vit_normalize(images.data_ptr(), B, H, W, mean.data_ptr(), deviation.data_ptr(), out.data_ptr())
        return out
    for part in pieces(0, len(images), images.device):
        torch.sub(images[part], mean, out=out[part]).div_(deviation)
    return out


def gray(images: Tensor) -> Tensor:
    """Gray levels by torchvision's weights: (n, 3, H, W) uint8 -> (n, 1, H, W) uint8."""
    red, green, blue = images.float().unbind(1)
    levels: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return levels.to(torch.uint8)[:, None]


def native(images: Tensor) -> ctypes.CDLL | None:
    """The library that works on these images, if there is one: for CPUs, where it was built with the project."""
    ours = type(images) is Tensor and images.device.type == "cpu" and images.is_contiguous()
    return _library() if ours else None


# ------------------------------------------------------------------------------------------ the forms in torch


def _blend(images: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    """Away from `other`, which broadcasts: (n, 3, H, W) uint8 -> the same."""
    levels = images.float()
    difference = (levels - other.float()).mul_(amount)  # in this form, a flat area stays exactly as it is
    return levels.add_(difference).clamp_(0, 255).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels, the center counted 5 times; the border stays: (n, 3, H, W) uint8 -> the same."""
    # Sums of whole numbers, so that it is exact: a convolution may run in TF32, or add in another order elsewhere.
    levels = images.float()
    rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    box = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(levels[..., 1:-1, 1:-1], alpha=4)
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = box.add_(6.5).mul_(1 / 13)  # truncated to the nearest level; 13 is odd: there are no ties
    return smooth


def _warp(images: Tensor, matrices: Tensor, fill: Color) -> Tensor:
    """(n, 3, H, W) uint8, (n, 6, 1, 1) float64 -> (n, 3, H, W) uint8."""
    H, W = images.shape[2:]
    a, b, c, d, e, f = matrices.unbind(1)  # of (n, 1, 1)
    x = torch.arange(W, dtype=torch.float64, device=images.device) - (W - 1) / 2
    y = torch.arange(H, dtype=torch.float64, device=images.device)[:, None] - (H - 1) / 2
    from_x, from_y = a * x + b * y + c + (W - 1) / 2, d * y + e * x + f + (H - 1) / 2  # (n, H, W)
    left, top = (from_x + 1e-9).floor(), (from_y + 1e-9).floor()  # whole pixels stay whole
    total = torch.zeros(images.shape, device=images.device)
    for column, across in ((left, left + 1 - from_x), (left + 1, from_x - left)):
        for row, down in ((top, top + 1 - from_y), (top + 1, from_y - top)):
            weight = (across * down).clamp_(0, 1).float()
            total.addcmul_(_at(images, row, column, fill).float(), weight[:, None])
    return total.round_().to(torch.uint8)


def _shift(images: Tensor, by: Tensor, fill: Color) -> Tensor:
    """(n, 3, H, W) uint8, (n, 2, 1, 1) int64 -> (n, 3, H, W) uint8."""
    right, down = by.unbind(1)
    H, W = images.shape[2:]
    column = torch.arange(W, device=images.device) - right  # (n, 1, W)
    row = torch.arange(H, device=images.device)[:, None] - down  # (n, H, 1)
    return _at(images, row.expand(-1, H, W), column.expand(-1, H, W), fill)


def _at(images: Tensor, row: Tensor, column: Tensor, fill: Color) -> Tensor:
    """The pixels at these places, `fill` outside: (n, 3, H, W) uint8, (n, H, W) twice -> (n, 3, H, W) uint8."""
    H, W = images.shape[2:]
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    place = torch.where(inside, row * W + column, H * W).long().flatten(1)[:, None].expand(-1, 3, -1)
    flat = F.pad(images.flatten(2), (0, 1))
    for channel, level in enumerate(fill):  # numbers of the host's: nothing is copied
        flat[:, channel, -1] = level
    return flat.gather(2, place).view_as(images)


# ------------------------------------------------------------------------------------------------- the library

_PART = ("lookup", "color", "sharpness", "gray_sums", "extremes", "histogram")  # with one more pointer
_FILLED = ("warp", "shift")  # with two


@functools.cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.machinery.PathFinder.find_spec("_pixel_ops", [str(Path(__file__).parent)])
    if spec is None or spec.origin is None:
        return None
    return declare(ctypes.CDLL(spec.origin))


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tells ctypes what the functions of `pixel_ops.cpp` take."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for names, more in ((_PART, 1), (_FILLED, 2)):
        for name in names:
            getattr(library, f"vit_{name}").argtypes = [pointer, pointer, size, size, size, *more * [pointer]]
    library.vit_planes.argtypes = [pointer, size, size, size, pointer, pointer]
    library.vit_normalize.argtypes = [pointer, size, size, size, pointer, pointer, pointer]
    return library
