"""Times of operations on a device."""

import time
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 1.0  # about how long an operation is repeated


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(function: Callable[[], Any], device: torch.device, calls: int = 0) -> float:
    """The mean duration of a call, after three calls that are not measured; of `calls`, or as many as take a second.

    With several ranks, which must call a collective equally often, `calls` must be given.
    """
    for _ in range(3):
        function()
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    calls = calls or max(3, min(100, int(SECONDS / max(time.perf_counter() - start, 1e-9))))
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls
