"""A copy of the part of the state that this rank writes, in memory shared with its writer process.

All ranks hold the same state, so each of W ranks writes about 1/W of its bytes: whole tensors, in their order.
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

ALIGNMENT = 64  # bytes; tensors are zero-padded to a multiple, and their checksums cover the padding


def make_layout(tensors: Mapping[str, Tensor], parts: int) -> Layout:
    """Assigns tensors to parts of about equal size, in their order, and to offsets in them.

    No tensor is split: the largest of ViT-B is 0.7 % of the bytes of its checkpoint.
    """
    sizes = {name: -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for name, tensor in tensors.items()}
    total = max(1, sum(sizes.values()))
    layout: dict[str, dict[str, Any]] = {}
    filled, before = [0] * parts, 0
    for name, tensor in tensors.items():
        part = min(parts - 1, (before + sizes[name] // 2) * parts // total)
        dtype = str(tensor.dtype).removeprefix("torch.")
        place = {"part": part, "offset": filled[part], "bytes": sizes[name]}
        layout[name] = {"dtype": dtype, "shape": list(tensor.shape), **place}
        filled[part] += sizes[name]
        before += sizes[name]
    return layout


class Snapshot:
    """A buffer for one rank's part, allocated and touched once: page faults would take longer than the copy.

    The copy overlaps with the next forward and backward pass, which do not change what it reads.  On a GPU it goes to
    pinned memory on its own stream, on a CPU it runs in a thread.
    """

    def __init__(self, layout: Layout, part: int, device: torch.device) -> None:
        mine = {name: entry for name, entry in layout.items() if entry["part"] == part}
        self.sizes = [entry["bytes"] for entry in mine.values()]
        self.fd = os.memfd_create("vit-snapshot")
        self.num_bytes = max(1, sum(self.sizes))
        os.ftruncate(self.fd, self.num_bytes)
        shared = mmap.mmap(self.fd, self.num_bytes)
        with suppress(OSError):  # a kernel without huge pages
            shared.madvise(mmap.MADV_HUGEPAGE)
        self.flat = torch.frombuffer(shared, dtype=torch.uint8).zero_()  # (bytes,)
        self._views = {
            name: as_tensor(self.flat[entry["offset"] : entry["offset"] + entry["bytes"]], entry)
            for name, entry in mine.items()
        }
        self._copy: Future[Any] | torch.cuda.Event | None = None  # completion of the newest copy
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "snapshot", torch.set_num_threads, (1,))
        if self._stream is not None:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.flat.data_ptr(), self.num_bytes, 0))

    def start_copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Starts to copy this rank's part.  `wait_for_copy` must be called before the tensors change."""
        views, sources = list(self._views.values()), [tensors[name].detach() for name in self._views]
        if not views:
            return  # more ranks than tensors
        if self._stream is None:
            self._copy = self._thread.submit(torch._foreach_copy_, views, sources)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            torch._foreach_copy_(views, sources, non_blocking=True)
            self._copy = self._stream.record_event()

    def wait_for_copy(self) -> None:
        """Orders what follows after the copy: on a GPU the current stream waits for it, on a CPU the caller does."""
        if isinstance(self._copy, Future):
            self._copy.result()
        elif self._copy is not None:
            torch.cuda.current_stream().wait_event(self._copy)

    def is_copied(self, wait: bool = False) -> bool:
        """Whether the copy is complete, so that the writer may read it."""
        if isinstance(self._copy, Future):
            if wait:
                self._copy.result()
            return self._copy.done()
        if self._copy is not None and wait:
            self._copy.synchronize()
        return self._copy is None or self._copy.query()

    def close(self) -> None:
        """Releases the thread and this process's handles of the memory."""
        if self._stream is not None:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.flat.data_ptr()))
        self._thread.shutdown()
        os.close(self.fd)
