"""Checksums of rows change with each bit, and do not depend on where the rows are."""

import pytest
import torch

from vit.integrity.row_sums import row_sums


@pytest.mark.parametrize(
    "values",
    [
        torch.randint(0, 256, (3, 5, 5, 3), dtype=torch.uint8),
        torch.randn(3, 7),
        torch.randn(3, 4, 4),
        torch.arange(3),
        torch.randn(2, 33).bfloat16(),
    ],
)
def test_each_flipped_bit_changes_the_sum_of_its_row_alone(values: torch.Tensor) -> None:
    """Of any type and size of rows."""
    expected = row_sums(values)
    assert expected.shape == (len(values),) and expected.dtype == torch.int64
    row = values.clone()[1:2]
    bytes_of_row = row.view(torch.uint8).view(-1) if values.ndim > 1 else row.view(torch.uint8)
    for place in range(len(bytes_of_row)):
        for bit in range(8):
            bytes_of_row[place] ^= 1 << bit
            changed = values.clone()
            changed[1:2] = row
            if not (changed.is_floating_point() and changed.isnan().any()):
                assert (row_sums(changed) != expected).tolist() == [i == 1 for i in range(len(values))]
            bytes_of_row[place] ^= 1 << bit


def test_swapped_values_have_another_sum() -> None:
    """As two images, or two halves of one."""
    values = torch.arange(8.0)[None]
    assert row_sums(values) != row_sums(values.flip(1))
    assert row_sums(values) != row_sums(values.roll(4))


def test_a_part_of_a_larger_tensor_has_the_sum_of_its_copy() -> None:
    """Also a transposed one, and one that is not aligned."""
    values = torch.randn(8, 9)
    for part in (values[3:5], values.T[1:], values[:, 1:], values[2:3, 3:]):
        assert torch.equal(row_sums(part), row_sums(part.clone()))
        assert torch.equal(row_sums(part[-1:]), row_sums(part)[-1:])


def test_all_values_that_are_not_a_number_are_the_same() -> None:
    """Which of them a sum of two returns is not defined; infinities have a sign."""
    nan = torch.tensor([[0x7FC00000], [0x7FC00001], [-1]], dtype=torch.int32)
    sums = row_sums(nan.view(torch.float32))
    assert len(set(sums.tolist())) == 1
    assert row_sums(torch.tensor([[torch.inf]])) != row_sums(torch.tensor([[-torch.inf]]))
