"""The checksums of rows, e.g. of the images of a batch, change with each of their bits."""

import pytest
import torch

from vit.integrity.checksums import checksum, one_nan, row_checksums

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "values",
    [
        torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8),  # more than a block, and not a multiple of a block
        torch.randint(0, 256, (3, 5), dtype=torch.uint8),
        torch.randn(2, 3, 32, 32),  # exactly three blocks
        torch.randint(0, 256, (2, 4096), dtype=torch.uint8),
        torch.randn(3, 7),
        torch.arange(3),
    ],
)
def test_a_row_has_the_checksum_of_a_tensor(values: torch.Tensor) -> None:
    """So each flipped bit changes it; also if the rows are a part of a larger tensor that is not contiguous."""
    expected = [checksum([row], CPU) for row in values]
    assert row_checksums(values).tolist() == expected
    assert row_checksums(values[1:]).tolist() == expected[1:]
    wider = torch.stack([values, values + 1], dim=-1)
    assert row_checksums(wider[..., 0]).tolist() == expected
    longer = torch.cat([values.view(-1)[:1], values.view(-1)])
    assert row_checksums(longer[1:].view(values.shape)).tolist() == expected


def test_all_values_that_are_not_a_number_are_the_same() -> None:
    """Which of them a sum of two returns is not defined; infinities and zeros keep their sign."""
    nan = torch.tensor([[0x7FC00000], [0x7FC00001], [-1]], dtype=torch.int32).view(torch.float32)
    assert len(set(row_checksums(nan).tolist())) == 3
    assert len(set(row_checksums(one_nan(nan)).tolist())) == 1
    others = torch.tensor([[torch.inf], [-torch.inf], [0.0], [-0.0]])
    assert len(set(row_checksums(one_nan(others)).tolist())) == 4
