"""What a process on the null GPU did: launches, copies, memory, and each synchronization with its Python caller."""

import ctypes
import os
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tests.helpers.paths import ROOT

_library: ctypes.CDLL | None = None
_callback: object = None  # kept alive as long as the library may call it
_synchronizations: "Counter[Synchronization]" = Counter()


class Synchronization(NamedTuple):
    """A place at which the host waits for the device."""

    function: str  # of CUDA
    caller: str  # "vit/training/step.py:130 update": the innermost line of this project; empty outside of Python
    library: str  # "torch/_tensor.py:12 item": the innermost line of all
    thread: str


@dataclass(frozen=True)
class Counts:
    """What happened since `reset`."""

    events: dict[str, int]
    kernels: dict[tuple[str, str], int]  # launches by stream and name
    used_bytes: int  # of device memory now, as nvidia-smi shows them
    peak_bytes: int
    synchronizations: "Counter[Synchronization]"  # since `watch`

    @property
    def launches(self) -> int:
        """Kernels, matrix products and collective operations."""
        return sum(self.kernels.values())

    def launches_by_stream(self) -> "Counter[str]":
        """Launches of each stream."""
        total: Counter[str] = Counter()
        for (stream, _), times in self.kernels.items():
            total[stream] += times
        return total


def watch() -> None:
    """Records the callers of synchronizations from now on."""
    global _callback  # noqa: PLW0603  # one device per process
    _callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_record)
    _null_gpu().null_gpu_on_synchronization(_callback)


def reset() -> None:
    """Counts from zero."""
    _null_gpu().null_gpu_reset()
    _synchronizations.clear()


def read() -> Counts:
    """What happened since the last `reset`."""
    events: dict[str, int] = {}
    kernels: dict[tuple[str, str], int] = {}
    used = peak = 0
    for line in _null_gpu().null_gpu_report().decode().splitlines():
        kind, first, *rest = line.split("\t")
        if kind == "event":
            events[rest[0]] = int(first)
        elif kind == "kernel":
            kernels[rest[0], rest[1]] = int(first)
        else:
            used, peak = int(first), int(rest[0])
    return Counts(events, kernels, used, peak, Counter(_synchronizations))


def _null_gpu() -> ctypes.CDLL:
    global _library  # noqa: PLW0603
    if _library is None:
        _library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        _library.null_gpu_report.restype = ctypes.c_char_p
    return _library


def _record(function: bytes) -> None:
    """Called by the library, in the thread that waits."""
    frame = sys._getframe().f_back
    innermost, ours = frame, frame
    while ours is not None and not _is_ours(ours):
        ours = ours.f_back
    thread = threading.current_thread().name
    if innermost is None:  # a thread that Python has not started, e.g. one of autograd
        thread = Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip()
    _synchronizations[Synchronization(function.decode(), _describe(ours), _describe(innermost), thread)] += 1


def _is_ours(frame: FrameType) -> bool:
    return _file(frame).startswith(f"{ROOT}/") and "site-packages" not in _file(frame)


def _file(frame: FrameType) -> str:
    """The source file; modules that were imported from `CHECKOUT` are links to the project's."""
    return os.path.realpath(frame.f_code.co_filename)


def _describe(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    path = _file(frame).removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
    return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"
