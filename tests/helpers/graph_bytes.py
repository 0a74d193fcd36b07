"""What torch.compile says that the kernels of its graphs read and write, added up over their calls."""

from typing import Any

import torch._inductor.config
from torch._inductor.output_code import CompiledFxGraph


class GraphBytes:
    """Bytes of all calls so far; without kernels that are only called: matrix products, attention."""

    total = 0


def watch() -> GraphBytes:
    """Counts the graphs that this process compiles from now on; it takes none from torch's caches."""
    out, of_graph = GraphBytes(), dict[int, int]()
    compiled, call = CompiledFxGraph.__init__, CompiledFxGraph.__call__

    def count_bytes(self: CompiledFxGraph, current: Any, graph: Any, *args: Any, **kwargs: Any) -> None:
        compiled(self, current, graph, *args, **kwargs)
        nodes = [node for node in graph.scheduler.nodes if not node.is_extern()]
        of_graph[id(self)] = sum(node.get_read_write_buffers_sizes() for node in nodes)

    def add_bytes(self: CompiledFxGraph, inputs: Any) -> Any:
        out.total += of_graph.get(id(self), 0)
        return call(self, inputs)

    CompiledFxGraph.__init__ = count_bytes  # type: ignore[method-assign]
    CompiledFxGraph.__call__ = add_bytes  # type: ignore[method-assign]
    torch._inductor.config.force_disable_caches = True
    return out
