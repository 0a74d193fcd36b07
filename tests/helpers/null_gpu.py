"""The null GPU: CUDA, cuBLAS, NCCL and NVML in which every call succeeds and no kernel runs.

torch's host code runs on it unchanged: its allocator, streams and events, autograd, DDP, torch.compile and Triton's
compiler.  Launches, synchronizations, copies and memory are counted.  It shows what the host does and how much memory a
step needs, but no numbers and no GPU time.  Its sources are in tests/null_gpu; this module builds them, and returns the
environment of a process on it.  `null_gpu_counts` reads the counts in that process.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from tests.helpers.paths import ROOT

Card = Literal["h100", "a100"]

SOURCES = ROOT / "tests" / "null_gpu"
LIBRARY = "libnullgpu.so"  # all but the driver and NVML, which have the names by which they are loaded
HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "nccl.h")
CUDA_MAJOR = "13"  # the functions in tests/null_gpu have the signatures of this version
MEMORY_GIB = {40: 39.4, 80: 79.1}  # what CUDA reports for cards that are sold as 40 and 80 GB
TRUE_FLAGS = {1: b"\1"}
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter")
# A C++ runtime of its own, because it is loaded into all programs; torch's exceptions must not pass through it.
OWN_RUNTIME = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")
CPP = ("g++", "-O1", "-std=c++17", "-fvisibility=hidden", *OWN_RUNTIME)


def missing() -> str | None:
    """Why the null GPU cannot be built here; None if it can."""
    if torch.version.cuda is None or torch.version.cuda.partition(".")[0] != CUDA_MAJOR:
        return f"the null GPU needs torch built with CUDA {CUDA_MAJOR}, not {torch.version.cuda}"
    if absent := [compiler for compiler in ("gcc", "g++") if shutil.which(compiler) is None]:
        return f"the null GPU needs {' and '.join(absent)}"
    if absent := [name for name in HEADERS if _include_folder(name) is None]:
        return f"the null GPU needs CUDA's headers, which torch's wheels bring along: no {', '.join(absent)}"
    return None


def build(folder: Path) -> None:
    """Compiles the libraries into a folder, in three seconds.  Raises RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{SOURCES}", "-isystem", str(SOURCES / "headers")]
    for path in dict.fromkeys(_include_folder(name) for name in HEADERS):
        includes += ["-isystem", str(path)]
    shared = [*WARNINGS, "-shared", "-fPIC", *includes]
    _compile([*CPP, *shared, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(folder / LIBRARY), "-ldl"])
    _compile(["gcc", *shared, str(SOURCES / "driver.c"), "-o", str(folder / "libcuda.so.1"), "-ldl"])
    _compile(["gcc", *shared, str(SOURCES / "nvml.c"), "-o", str(folder / "libnvidia-ml.so.1")])
    (folder / "libcuda.so").symlink_to("libcuda.so.1")


def environment(
    folder: Path,
    *,
    card: Card = "h100",
    memory_gb: Literal[40, 80] = 80,
    devices: int = 1,
    answers: Mapping[int, bytes] = TRUE_FLAGS,
) -> dict[str, str]:
    """Variables with which a process, and all that it starts, runs on the null GPU that was built into `folder`.

    `answers` are what copies of so many bytes from the device return.  Other copies return what was copied to the
    device, or zeros, because no kernel runs; by default, flags are true, e.g. that all values are finite.
    """
    return {
        "LD_PRELOAD": str(folder / LIBRARY),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "NULL_GPU_CARD": card,
        "NULL_GPU_MEMORY_GIB": str(MEMORY_GIB[memory_gb]),
        "NULL_GPU_DEVICES": str(devices),
        "NULL_GPU_ANSWERS": ",".join(f"{size}={data.hex()}" for size, data in answers.items()),
        # What one process has compiled, the others find; a compiler that starts processes takes longer here.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _include_folder(header: str) -> Path | None:
    """The folder of a header of CUDA: in the wheels of torch's dependencies, or else in the CUDA toolkit."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(path) for path in (spec.submodule_search_locations or ())] if spec else []
    candidates = [path / "include" for wheel in wheels for path in sorted(wheel.iterdir())]
    candidates.append(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include"))
    return next((folder for folder in candidates if (folder / header).is_file()), None)


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        raise RuntimeError(f"the null GPU cannot be built:\n{done.stderr}")
