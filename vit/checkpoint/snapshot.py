"""A copy of what this rank writes of the state, in memory that it shares with its writer.

The state is the same on all ranks, so each of W ranks writes about a W-th of its bytes: whole tensors, in their order.
"""

import mmap
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vit.checkpoint.format import Layout
from vit.checkpoint.load import as_tensor

ALIGNMENT = 64  # bytes; what a tensor is filled up to, with zeros, which its digest covers too


def lay_out(tensors: Mapping[str, Tensor], parts: int) -> Layout:
    """Which part holds which tensor, and where: in their order, so that the parts are of about the same size.

    None is split: the largest of ViT-B's is 0.7 % of all it saves.
    """
    sizes = {name: -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for name, tensor in tensors.items()}
    total = max(1, sum(sizes.values()))
    out: dict[str, dict[str, Any]] = {}
    filled, before = [0] * parts, 0
    for name, tensor in tensors.items():
        part = min(parts - 1, (before + sizes[name] // 2) * parts // total)
        dtype = str(tensor.dtype).removeprefix("torch.")
        place = {"part": part, "offset": filled[part], "bytes": sizes[name]}
        out[name] = {"dtype": dtype, "shape": list(tensor.shape), **place}
        filled[part] += sizes[name]
        before += sizes[name]
    return out


class Snapshot:
    """Room for one rank's part, made and filled once at the start: fresh memory would take longer than the copy.

    The copy runs beside the next forward and backward pass, which change nothing that it reads: on a GPU into pinned
    memory on a stream of its own, on a CPU in a thread.
    """

    def __init__(self, layout: Layout, part: int, device: torch.device) -> None:
        mine = {name: entry for name, entry in layout.items() if entry["part"] == part}
        self.sizes = [entry["bytes"] for entry in mine.values()]
        self.memory = os.memfd_create("vit-snapshot")
        self.size = max(1, sum(self.sizes))
        os.ftruncate(self.memory, self.size)
        shared = mmap.mmap(self.memory, self.size)
        with suppress(OSError):  # a kernel without huge pages
            shared.madvise(mmap.MADV_HUGEPAGE)
        self.flat = torch.frombuffer(shared, dtype=torch.uint8).zero_()  # (bytes,)
        self._views = {
            name: as_tensor(self.flat[entry["offset"] : entry["offset"] + entry["bytes"]], entry)
            for name, entry in mine.items()
        }
        self._copied: Future[Any] | torch.cuda.Event | None = None  # of the newest copy
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "snapshot", torch.set_num_threads, (1,))
        if self._stream is not None:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.flat.data_ptr(), self.size, 0))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Begins to copy this rank's part.  Before its tensors change, `protect` must be called."""
        views, sources = list(self._views.values()), [tensors[name].detach() for name in self._views]
        if not views:
            return  # there are more ranks than tensors
        if self._stream is None:
            self._copied = self._thread.submit(torch._foreach_copy_, views, sources)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            torch._foreach_copy_(views, sources, non_blocking=True)
            self._copied = self._stream.record_event()

    def protect(self) -> None:
        """Has whatever comes next wait for the copy: on a GPU what is queued from now on, on a CPU the caller."""
        if isinstance(self._copied, Future):
            self._copied.result()
        elif self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def taken(self, wait: bool = False) -> bool:
        """Whether all is copied, and the writer may read it."""
        if isinstance(self._copied, Future):
            if wait:
                self._copied.result()
            return self._copied.done()
        if self._copied is not None and wait:
            self._copied.synchronize()
        return self._copied is None or self._copied.query()

    def close(self) -> None:
        """Gives the memory back, as far as nothing else uses it."""
        if self._stream is not None:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.flat.data_ptr()))
        self._thread.shutdown()
        os.close(self.memory)
