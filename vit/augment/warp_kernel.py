"""The affine warp of `pixel_ops.py` as one Triton kernel for NVIDIA GPUs, in the order of operations of `warp.h`.

In torch it takes 124 kernels, which read and write 475 times the bytes of the images.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # pixels of a program; all three channels of each


@triton.jit  # type: ignore[untyped-decorator]
def _warp(source, target, matrices, H, W, red, green, blue, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program for each image and each `block` of its pixels; see `Selection.warp`."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    y, x = pixel // W, pixel % W
    # H and W are Python integers, without `.to`, where they are 1: Triton compiles that value into the kernel.
    center_x, center_y = tl.cast(W - 1, tl.float64) * 0.5, tl.cast(H - 1, tl.float64) * 0.5
    from_center_x, from_center_y = x.to(tl.float64) - center_x, y.to(tl.float64) - center_y
    a, b, c = tl.load(matrices + 6 * image), tl.load(matrices + 6 * image + 1), tl.load(matrices + 6 * image + 2)
    d, e, f = tl.load(matrices + 6 * image + 3), tl.load(matrices + 6 * image + 4), tl.load(matrices + 6 * image + 5)
    source_x = a * from_center_x + b * from_center_y + c + center_x
    source_y = d * from_center_y + e * from_center_x + f + center_y
    left, top = tl.floor(source_x + 1e-9), tl.floor(source_y + 1e-9)  # integer positions stay integers
    left_share, top_share = left + 1.0 - source_x, top + 1.0 - source_y
    right_share, bottom_share = tl.maximum(source_x - left, 0.0), tl.maximum(source_y - top, 0.0)
    # Positions more than one pixel outside of the image have only the fill color.
    column = tl.minimum(tl.maximum(left, -2.0), tl.cast(W, tl.float64)).to(tl.int32)
    row = tl.minimum(tl.maximum(top, -2.0), tl.cast(H, tl.float64)).to(tl.int32)
    weight_0, weight_1 = (left_share * top_share).to(tl.float32), (left_share * bottom_share).to(tl.float32)
    weight_2, weight_3 = (right_share * top_share).to(tl.float32), (right_share * bottom_share).to(tl.float32)
    in_left, in_right = (column >= 0) & (column < W), (column >= -1) & (column < W - 1)
    in_top, in_bottom = (row >= 0) & (row < H), (row >= -1) & (row < H - 1)
    here = pixel < H * W
    at = row * W + column
    for channel in tl.static_range(3):
        fill = red if channel == 0 else (green if channel == 1 else blue)
        plane = source + (image * 3 + channel) * H * W
        pixel_0 = tl.load(plane + at, mask=here & in_left & in_top, other=0)
        pixel_1 = tl.load(plane + at + W, mask=here & in_left & in_bottom, other=0)
        pixel_2 = tl.load(plane + at + 1, mask=here & in_right & in_top, other=0)
        pixel_3 = tl.load(plane + at + W + 1, mask=here & in_right & in_bottom, other=0)
        level_0 = tl.where(in_left & in_top, pixel_0.to(tl.int32), fill).to(tl.float32)
        level_1 = tl.where(in_left & in_bottom, pixel_1.to(tl.int32), fill).to(tl.float32)
        level_2 = tl.where(in_right & in_top, pixel_2.to(tl.int32), fill).to(tl.float32)
        level_3 = tl.where(in_right & in_bottom, pixel_3.to(tl.int32), fill).to(tl.float32)
        total = tl.fma(level_0, weight_0, tl.zeros_like(weight_0))
        total = tl.fma(level_1, weight_1, total)
        total = tl.fma(level_2, weight_2, total)
        total = tl.fma(level_3, weight_3, total)
        rounded = (total + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest integer, ties to even
        tl.store(target + (image * 3 + channel) * H * W + pixel, rounded.to(tl.uint8), mask=here)


def warp(images: Tensor, matrices: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """(n, 3, H, W) uint8, (n, 6) float64, both on one GPU -> (n, 3, H, W) uint8."""
    n, _, H, W = images.shape
    images = images.contiguous()
    out = torch.empty_like(images)
    grid = (triton.cdiv(H * W, BLOCK), n)
    # Products and sums are rounded separately, as in C++: without fusion, the bytes are those of the CPU.
    _warp[grid](images, out, matrices, H, W, *fill, block=BLOCK, enable_fp_fusion=False)
    return out
