"""A checksum changes with any single bit, and is the same for the same bits."""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from vit.integrity import checksums
from vit.integrity.checksums import checksum

CPU = torch.device("cpu")
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
# Empty, a step counter, odd lengths, rows and their borders, read in place with and without a rest.
SHAPES = ((0,), (), (1,), (3,), (7, 5), (2 * checksums.ROW,), (2 * checksums.ROW + 1,), (129, 1024), (65, 1009))


def value(*tensors: Tensor) -> int:
    return int(checksum(tensors, CPU))


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Any bits: NaN of every kind, infinities, denormal numbers."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (max(1, torch.Size(shape).numel()) * size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype)[: torch.Size(shape).numel()].view(shape)


def flip(tensor: Tensor, bit: int) -> None:
    """Flips one bit of a contiguous tensor in place."""
    flat = tensor.reshape(-1).view(torch.uint8)
    assert flat.data_ptr() == tensor.data_ptr()
    flat[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_flipped_bit_changes_the_checksum(dtype: torch.dtype) -> None:
    """The first, the last and some others of each tensor among several; flipped back, it is the same again."""
    tensors = [random_bits(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]
    before, draw = value(*tensors), random.Random(1)
    for tensor in tensors:
        bits = tensor.nbytes * 8
        chosen = {0, bits - 1, *(draw.randrange(bits) for _ in range(20))} if bits else set()
        for bit in {bit // 8 * 8 for bit in chosen} if dtype is torch.bool else chosen:
            flip(tensor, bit)
            assert value(*tensors) != before
            flip(tensor, bit)
    assert value(*tensors) == before


def test_every_bit_of_a_tensor_counts() -> None:
    """All 16,384 of half a row, one after the other."""
    words = random_bits((checksums.ROW,), torch.int32)
    before = value(words)
    for bit in range(words.nbytes * 8):
        flip(words, bit)
        assert value(words) != before
        flip(words, bit)
    assert value(words) == before


def test_swapped_rows_and_tensors_change_it() -> None:
    """As a wrong address would."""
    rows = random_bits((130, 2 * checksums.ROW), torch.float32)
    swapped = rows[torch.tensor([1, 0, *range(2, 130)])]
    assert value(rows) != value(swapped)
    a, b = rows.clone(), random_bits((130, 2 * checksums.ROW), torch.float32, seed=1)
    assert value(a, b) != value(b, a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_have_the_same_checksum_whatever_their_strides(dtype: torch.dtype) -> None:
    """Transposed, a slice, a part of a larger tensor at any offset, a broadcast."""
    for shape in ((5, 7), (70, 1024), (1025, 67)):
        tensor = random_bits(shape, dtype)
        expected = value(tensor)
        assert value(tensor.t().contiguous().t()) == expected
        wide = torch.empty(shape[0], 2 * shape[1], dtype=dtype)
        wide[:, ::2] = tensor
        assert value(wide[:, ::2]) == expected
        for offset in range(1, 4):
            larger = torch.zeros(tensor.numel() + 8, dtype=dtype)
            larger[offset : offset + tensor.numel()] = tensor.reshape(-1)
            assert value(larger[offset : offset + tensor.numel()].view(shape)) == expected
    row = random_bits((1, 999), dtype)
    assert value(row.expand(100, 999)) == value(row.expand(100, 999).contiguous())


def test_many_small_tensors_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit in any group counts; the memory that is needed has a limit."""
    monkeypatch.setattr(checksums, "GROUP", checksums.LARGE + 1000)
    tensors = [random_bits((300,), torch.float32, seed) for seed in range(40)]
    before = value(*tensors)
    for tensor in tensors:
        flip(tensor, 4711)
    values = [before]
    for tensor in tensors:
        flip(tensor, 4711)
        values.append(value(*tensors))
    assert all(a != b for a, b in pairwise(values)) and values[-1] == before


def test_kinds_and_tensors_have_checksums_of_their_own() -> None:
    """A run without an EMA has 0 for it."""
    weights, moments = torch.randn(10), torch.randn(20)
    state = {"model.a": weights, "optimizer.a.exp_avg": moments}
    kinds = checksums.kind_checksums(state, CPU).tolist()
    assert kinds == [value(weights), value(moments), 0]
    assert checksums.tensor_checksums(state.values(), CPU).tolist() == kinds[:2]
