"""Which rows `train_sizes` may have.  Imports no torch."""

import math
from collections.abc import Sequence

from vit.config.user_error import require
from vit.config.values import ROWS_EXAMPLE


def check_train_sizes(rows: Sequence[Sequence[int | float]], image_size: int, patch_size: int, batch: int) -> None:
    """Raises UserError unless each row is [share, side] or [share, side, micro_batch], and the shares sum to 1."""
    for number, row in enumerate(rows, 1):
        what = f"train_sizes row {number} [{', '.join(f'{value:g}' for value in row)}]"
        require(
            len(row) in (2, 3),
            f"{what} must be [share of the run, side in pixels] or [share, side, micro_batch], as in {ROWS_EXAMPLE}",
        )
        share, side = row[:2]
        require(0 < share <= 1, f"{what}: the share of the run must be more than 0 and at most 1, not {share:g}")
        require(
            0 < side <= image_size and side == int(side) and side % patch_size == 0,
            f"{what}: the side must be a multiple of model.patch_size {patch_size}, at most "
            f"model.image_size {image_size}, not {side:g}",
        )
        for micro in row[2:]:
            require(
                0 < micro <= batch and micro == int(micro) and batch % micro == 0,
                f"{what}: micro_batch {micro:g} does not divide global_batch {batch}",
            )
    total = math.fsum(row[0] for row in rows)
    require(abs(total - 1) < 1e-3, f"the shares of train_sizes must sum to 1, not {total:g}")
