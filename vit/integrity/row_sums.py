"""64-bit checksums of the rows of a tensor, computed on its device.

A row is read as 64-bit integers, each is multiplied by an odd number that depends on its place, and the products are
added modulo 2**64.  One changed integer always changes the sum; the order of the additions never does.
"""

import torch
from torch import Tensor

_CHUNK = 32 << 20  # bytes of rows that are multiplied at once
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@torch.no_grad()
def row_sums(values: Tensor) -> Tensor:
    """The checksum of each row: (n, ...) -> (n,) int64, on the same device.  All NaN count as the same value."""
    if values.is_floating_point():
        # Which NaN an operation returns is not defined: a sum of two may return either.
        values = torch.where(values.isnan(), torch.nan, values)
    rows = values.reshape(len(values), -1).contiguous()
    width = rows.shape[1] * rows.element_size()
    size = next(size for size in _INTEGERS if width % size == 0)
    rows = rows.view(torch.uint8).view(_INTEGERS[size])
    factors = _odd_factors(rows.shape[1], rows.device)
    chunks = rows.split(max(1, _CHUNK // max(1, 8 * rows.shape[1])))
    return torch.cat([(chunk.long() * factors).sum(dim=1) for chunk in chunks])


def _odd_factors(count: int, device: torch.device) -> Tensor:
    """Odd pseudo-random integers: (count,) int64."""
    z = torch.arange(1, count + 1, device=device) * 0x1E3779B97F4A7C15
    z = (z ^ (z >> 31)) * 0x3F58476D1CE4E5B9
    return (z ^ (z >> 29)) | 1
