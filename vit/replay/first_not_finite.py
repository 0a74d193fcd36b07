"""Finds the first operation of a forward and backward pass whose result is not finite, and the module it belongs to.

Each operation of torch is looked at when it is dispatched, in forward and in backward.  In forward, hooks tell in which
module it is.  In backward, it belongs to a node of autograd's graph: each node is assigned to the innermost module
that made it, and torch's anomaly mode remembers the line of code.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_OURS = Path(__file__).parents[1]  # the package vit
_UNSET = ("empty", "new_empty", "resize_")  # operations whose result has no values yet


@dataclass(frozen=True)
class FirstNotFinite:
    """The first operation with a result that is not finite."""

    phase: Literal["forward", "backward"]
    module: str  # e.g. blocks.3.attention; "loss" after the model
    operation: str  # torch's name: addmm, mul, …
    line: str  # of our code, e.g. vision_transformer.py:131, in forward: return self.out(…)
    shape: tuple[int, ...]
    dtype: str
    nans: int  # values of the result
    infinities: int
    values: int
    largest_input: float  # of the finite values that it got
    finite_inputs: bool  # whether all values that it got were finite
    rows: tuple[int, ...] | None  # images of the micro-batch with such values, if the first dimension is that of images


class _Stop(Exception):  # noqa: N818  # not an error
    """Ends the forward pass in which the first operation was found."""


class FiniteCheck(TorchDispatchMode):
    """Looks for the first operation within this context whose result is not finite.  A forward pass then ends.

    `rows`: the number of images of the micro-batch.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.found: FirstNotFinite | None = None
        self.phase: Literal["forward", "backward"] = "forward"
        self._names = {module: name for name, module in model.named_modules()}
        self._stack = ["loss"]
        self._owners: dict[Any, str] = {}  # of autograd's nodes; the keys keep their Python objects alive

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation, and looks at its result."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.found is None and not name.startswith(_UNSET):
            wrong = next((tensor for tensor in _floats(out) if not tensor.isfinite().all()), None)
            if wrong is not None:
                self.found = self._describe(name, wrong, list(_floats((args, kwargs))))
        if self.found is not None and self.phase == "forward":
            raise _Stop  # autograd would print its own warning about an exception in backward
        return out

    def _describe(self, name: str, result: Tensor, inputs: Sequence[Tensor]) -> FirstNotFinite:
        node = torch._C._current_autograd_node() if self.phase == "backward" else None
        wrong = ~result.isfinite()
        rows = None
        if result.dim() and result.shape[0] == self.rows:
            rows = tuple(wrong.flatten(1).any(1).nonzero().flatten().tolist() if result.dim() > 1 else wrong.nonzero())
        largest = [float(t[t.isfinite()].abs().max()) for t in inputs if t.isfinite().any()]
        return FirstNotFinite(
            phase=self.phase,
            module=(self._owners.get(node, "") if node is not None else self._stack[-1]) or "the model",
            operation=name if node is None else f"{name} ({node.name()})",
            line=_line_of(node),
            shape=tuple(result.shape),
            dtype=str(result.dtype).removeprefix("torch."),
            nans=int(result.isnan().sum()),
            infinities=int(result.isinf().sum()),
            values=result.numel(),
            largest_input=max(largest, default=0.0),
            finite_inputs=all(bool(t.isfinite().all()) for t in inputs),
            rows=rows,
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follows which module is running, and which nodes of the graph it makes."""
        handles = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append(self._names[module])

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()
        self.assign(self._names[module] or "the model", output, inputs)

    def assign(self, name: str, outputs: Any, inputs: Any) -> None:
        """Assigns to a module the nodes between its inputs and its outputs that belong to no module inside of it."""
        seen = {t.grad_fn for t in _floats(inputs) if t.grad_fn is not None}
        pending = [t.grad_fn for t in _floats(outputs) if t.grad_fn is not None]
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            self._owners.setdefault(node, name)
            pending += [following for following, _ in node.next_functions if following is not None]


def first_not_finite(
    model: nn.Module,
    forward: Callable[[], tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    rows: int,
) -> FirstNotFinite | None:
    """The first operation of a pass whose result is not finite; None if all are finite.

    `forward` returns logits and the (scaled) loss, of which the gradient is computed.
    """
    check = FiniteCheck(model, rows)
    with suppress(_Stop), torch.autograd.set_detect_anomaly(True, check_nan=False), check.watching(), check:
        logits, loss = forward()
        check.assign("loss", loss, logits)
        check.phase = "backward"
        torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return check.found


def _floats(values: Any) -> Iterable[Tensor]:
    """The tensors of floating-point numbers in nested values."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _line_of(node: Any) -> str:
    """The line of our code that runs, or that made a node."""
    if node is None:
        frames = [(f.filename, f.lineno, f.name, f.line) for f in traceback.extract_stack()]
    else:
        frames = [_parsed(text) for text in node.metadata.get("traceback_", [])]
    ours = [frame for frame in frames if _is_model_code(frame[0])]
    if not ours:
        return ""
    file, number, function, line = ours[-1]
    return f"{Path(file).name}:{number}, in {function}: {(line or '').strip()}"


def _parsed(text: str) -> tuple[str, int | None, str, str | None]:
    """A frame as `traceback.format_list` writes it."""
    head, _, rest = text.strip().partition("\n")
    file, _, more = head.removeprefix('File "').partition('", line ')
    number, _, function = more.partition(", in ")
    return file, int(number) if number.isdigit() else None, function, rest.partition("\n")[0]


def _is_model_code(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(_OURS) and not path.is_relative_to(_OURS / "replay")
