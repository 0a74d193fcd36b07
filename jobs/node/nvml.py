"""NVML: how busy GPUs are, and how much of their memory is used, as `nvidia-smi` shows it.

Six functions of the driver's library, whose types have been the same since 2011
(https://docs.nvidia.com/deploy/nvml-api); NVIDIA's Python package would be one more dependency of every cluster.
"""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"
NOT_SUPPORTED = 3  # a function that this device does not have: MIG instances have no utilization
NAME_BYTES = 96


class NvmlError(RuntimeError):
    """The driver's library is there, but does not work."""


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass(frozen=True)
class GpuSample:
    """What a GPU does now."""

    utilization: float | None  # share of the last moments in which a kernel ran; None for MIG instances
    memory: int  # bytes that are used, by all processes
    memory_total: int  # bytes


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG instance, that can be sampled."""

    name: str
    handle: ctypes.c_void_p


class Nvml:
    """The library.  Its calls take about a millisecond, and use no GPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises NvmlError if the driver does not work."""
        self._library = library
        self._call("nvmlInit_v2")

    def gpus(self, environment: Mapping[str, str], count: int) -> list[Gpu]:
        """The first `count` GPUs that CUDA shows to a process with this environment.  Raises NvmlError."""
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = list(map(str, range(count))) if visible is None else [name.strip() for name in visible.split(",")]
        return [self._gpu(name) for name in names[:count] if name and name != "-1"]

    def _gpu(self, name: str) -> Gpu:
        """A GPU by its number, its UUID or the beginning of one, or a MIG instance by its UUID."""
        handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(NAME_BYTES)
        if name.isdigit():
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(name)), ctypes.byref(handle))
        else:
            self._call("nvmlDeviceGetHandleByUUID", name.encode(), ctypes.byref(handle))
        self._call("nvmlDeviceGetName", handle, text, ctypes.c_uint(NAME_BYTES))
        return Gpu(text.value.decode(errors="replace"), handle)

    def sample(self, gpu: Gpu) -> GpuSample:
        """What a GPU does now.  Raises NvmlError."""
        rates, memory = _Utilization(), _Memory()
        supported = self._call("nvmlDeviceGetUtilizationRates", gpu.handle, ctypes.byref(rates))
        self._call("nvmlDeviceGetMemoryInfo", gpu.handle, ctypes.byref(memory))
        return GpuSample(rates.gpu / 100 if supported else None, memory.used, memory.total)

    def _call(self, name: str, *args: object) -> bool:
        """Whether this device has the function.  Raises NvmlError."""
        try:
            code = getattr(self._library, name)(*args)
        except AttributeError:
            raise NvmlError(f"{LIBRARY} has no {name}") from None
        if code not in (0, NOT_SUPPORTED):
            raise NvmlError(f"{name} returned {code}, see nvmlReturn_t")
        return bool(code == 0)


def load() -> Nvml | None:
    """The library; None if the machine has none.  Raises NvmlError if it does not work."""
    try:
        return Nvml(ctypes.CDLL(LIBRARY))
    except OSError:
        return None


def visible_gpus(count: int) -> tuple[Nvml, list[Gpu]] | None:
    """The library and the first `count` GPUs of this process; None if there are none.  Raises NvmlError."""
    nvml = load()
    gpus = nvml.gpus(os.environ, count) if nvml is not None else []
    return (nvml, gpus) if nvml is not None and gpus else None
