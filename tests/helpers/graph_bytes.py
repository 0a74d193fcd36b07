"""What torch.compile says that the kernels of its graphs read and write, added up over their calls."""

from typing import Any

from torch._inductor.output_code import CompiledFxGraph


class GraphBytes:
    """Bytes of all calls so far; without kernels that are only called: matrix products, attention.

    None if a graph came from torch's cache, which does not keep them.
    """

    total: int | None = 0


def watch() -> GraphBytes:
    """Counts the graphs that this process compiles from now on."""
    out, of_graph = GraphBytes(), dict[int, int]()
    compiled, call = CompiledFxGraph.__init__, CompiledFxGraph.__call__

    def count_bytes(self: CompiledFxGraph, current: Any, graph: Any, *args: Any, **kwargs: Any) -> None:
        compiled(self, current, graph, *args, **kwargs)
        nodes = [node for node in graph.scheduler.nodes if not node.is_extern()]
        of_graph[id(self)] = sum(node.get_read_write_buffers_sizes() for node in nodes)

    def add_bytes(self: CompiledFxGraph, inputs: Any) -> Any:
        known = of_graph.get(id(self))
        out.total = None if known is None or out.total is None else out.total + known
        return call(self, inputs)

    CompiledFxGraph.__init__ = count_bytes  # type: ignore[method-assign]
    CompiledFxGraph.__call__ = add_bytes  # type: ignore[method-assign]
    return out
