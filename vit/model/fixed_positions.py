"""Whether positions are the fixed ones of a model with `positions: sincos2d`.  Does not import torch."""

import math

import numpy as np
from numpy.typing import NDArray

from vit.config.user_error import UserError


def check_fixed_positions(positions: NDArray[np.floating], width: int, source: str) -> None:
    """Raises UserError unless these are the fixed positions of `model.positions` sincos2d, (1, N, D), of any size."""
    equal = False
    if positions.ndim == 3 and positions.shape[2] == width:
        tokens, side = positions.shape[1], math.isqrt(positions.shape[1])
        fixed = np.zeros((1, tokens, width))
        fixed[:, tokens - side * side :] = _sincos2d(side, width)  # after the class token's zeros
        equal = np.allclose(positions, fixed, atol=0.01)  # half precision rounds to 0.004
    if not equal:
        raise UserError(f"{source} does not fit the model: its positions are learned; set model.positions to learned")


def _sincos2d(side: int, width: int) -> NDArray[np.float64]:
    """The positions of `vision_transformer.sincos2d`, without torch, whose bits may differ: -> (1, side², D)."""
    omega = 10_000.0 ** -(np.arange(width // 4) / (width // 4 - 1))
    y, x = np.divmod(np.arange(side * side), side)
    angles_x, angles_y = x[:, None] * omega, y[:, None] * omega
    return np.concatenate([np.sin(angles_x), np.cos(angles_x), np.sin(angles_y), np.cos(angles_y)], axis=1)[None]
