"""64-bit checksums of tensors' bits, computed on their device, without waiting for it and almost without memory.

The bits are read as 64-bit integers.  Rows of them are added, and the sums are added again, each times an odd number of
its own, all modulo 2^64.  A flipped bit changes its row's sum by a power of two less than 2^64, of which an odd
multiple is never 0: any single flip changes the checksum.  Integer sums do not depend on their order, so neither does
the result.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

ROW = 512  # 64-bit integers in a row
LARGE = 1 << 16  # 32-bit words from which on a tensor is read in place; smaller ones are copied side by side first
GROUP = 1 << 23  # 32-bit words that are copied side by side at a time, at most: 32 MiB
_ODD = 0x1E3779B97F4A7C15  # the golden ratio's bits; spreads the weights over all 64 bits

# What ranks compare, by the first part of a tensor's name in a checkpoint.
KINDS = {"model": "weights", "optimizer": "optimizer state", "average": "EMA of the weights"}


def kind_checksums(tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """A checksum for each of KINDS, in their order: (3,) int64 on the device."""
    of_kind: dict[str, list[Tensor]] = {prefix: [] for prefix in KINDS}
    for name, tensor in tensors.items():
        of_kind[name.partition(".")[0]].append(tensor)
    return torch.stack([checksum(each, device) for each in of_kind.values()])


def tensor_checksums(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """A checksum for each tensor: (n,) int64 on the device."""
    return torch.stack([checksum([tensor], device) for tensor in tensors])


@torch.no_grad()
def checksum(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """The checksum of all bits of some tensors, in their order: () int64 on the device.

    Depends on values and shapes, not on strides.
    """
    sums: list[Tensor] = []  # of rows, in a fixed order: (rows,) each
    small: list[Tensor] = []
    words_of_small = 0
    for tensor in tensors:
        words = _words(tensor if tensor.device == device else tensor.to(device, non_blocking=True))
        count = words.numel()
        if count >= LARGE:
            in_rows = count // (2 * ROW) * (2 * ROW)
            sums.append(_row_sums(words[:in_rows]))
            words, count = words[in_rows:], count - in_rows
        small.append(words)
        words_of_small += count
        if words_of_small > GROUP - LARGE:
            sums.append(_row_sums(_side_by_side(small, words_of_small)))
            small, words_of_small = [], 0
    if small:
        sums.append(_row_sums(_side_by_side(small, words_of_small)))
    if not sums:
        return torch.zeros((), dtype=torch.int64, device=device)
    rows = torch.cat(sums)
    return rows.mul_(_odd_factors(len(rows), device)).sum()


@torch.no_grad()
def row_checksums(values: Tensor) -> Tensor:
    """The checksum of each row, e.g. of each image of a batch, as if it were a tensor: (n, ...) -> (n,) int64."""
    rows = values.reshape(len(values), -1)
    per_block = 8 * ROW // rows.element_size()
    blocks = -(-rows.shape[1] // per_block)
    if rows.shape[1] % per_block or not rows.is_contiguous() or rows.data_ptr() % 8:
        padded = rows.new_zeros(len(rows), blocks * per_block)
        padded[:, : rows.shape[1]] = rows
        rows = padded
    sums = _row_sums(rows.view(-1).view(torch.int32)).view(len(rows), blocks)
    return (sums * _odd_factors(blocks, values.device)).sum(dim=1)


def one_nan(values: Tensor) -> Tensor:
    """A copy in which all NaN have the same bits: which of many a sum of two NaN returns is not defined."""
    return torch.where(values.isnan(), torch.nan, values)


def _odd_factors(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, 2 * count, 2, device=device).mul_(_ODD)


def _words(tensor: Tensor) -> Tensor:
    """The bits of a tensor in the order of its elements: (n,) int32, padded with zeros if they do not fill a word."""
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.contiguous().view(-1)
    size = flat.element_size()
    if size % 4 == 0:
        return flat.view(torch.int32)
    padded = flat.new_zeros(-(-len(flat) * size // 4) * 4 // size)
    padded[: len(flat)] = flat
    return padded.view(torch.int32)


def _side_by_side(small: list[Tensor], words: int) -> Tensor:
    """The words of all, padded to whole rows."""
    missing = -words % (2 * ROW)
    return torch.cat([*small, small[0].new_zeros(missing)])


def _row_sums(words: Tensor) -> Tensor:
    """(rows · 2 · ROW,) int32 -> (rows,) int64."""
    if words.storage_offset() % 2:  # a part of a larger tensor, not aligned to 64 bits
        words = words.clone()
    return words.view(torch.int64).view(-1, ROW).sum(1)
