"""Forward and backward passes of micro-batches as CUDA graphs: the host launches all their kernels in one call.

A pass of ViT-B has about 650 launches, however small its micro-batch: with few images the host takes longer to launch
them than the GPU to run them.  https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

# Computes the loss of a model for images (m, 3, S, S) and targets (m, C), and that loss as it is to be differentiated.
Loss = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Pass:
    """A captured pass, and the tensors that it reads and overwrites at each replay."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    targets: Tensor
    loss: Tensor
    gradients: list[Tensor]


class MicroBatchGraphs:
    """Captures the passes of each shape of micro-batches once, and replays them.

    A replay runs the kernels of the pass without a graph, and so gives its bits.  Random draws are the same too: the
    kernels read seed and offset of the device's generator, which a replay writes, so that after `torch.manual_seed` a
    replay draws what the pass would draw.  The weights are read where they were when the pass was captured: they must
    be updated in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # Other tensors with the same memory: autograd's nodes for the parameters themselves, which DDP keeps, belong to
        # another stream, for which a graph cannot wait.
        self._aliases: dict[str, Tensor] = {
            name: nn.Parameter(p.detach(), p.requires_grad) for name, p in model.named_parameters()
        }
        self._run: set[torch.Size] = set()  # shapes of images that were run without a graph
        self._passes: dict[torch.Size, _Pass] = {}
        self._pool = torch.cuda.graph_pool_handle()  # never in use by two graphs at a time

    def replays(self, images: Tensor) -> bool:
        """Whether micro-batches of this shape are replayed; False once for each shape, which must then be run as usual.

        That compiles and loads kernels and allocates workspaces, which cannot be captured.
        """
        known = self.has_run(images)
        self._run.add(images.shape)
        return known

    def has_run(self, images: Tensor) -> bool:
        """Whether micro-batches of this shape can be replayed."""
        return images.shape in self._run

    def run(self, loss: Loss, images: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the loss, and the gradient of each trained parameter, which the next call overwrites.

        `loss` must be the same function at each call with images of the same shape.
        """
        captured = self._passes.get(images.shape)
        if captured is None:
            captured = self._passes[images.shape] = self._capture(loss, images, targets)
        captured.images.copy_(images)
        captured.targets.copy_(targets)
        captured.graph.replay()
        return captured.loss.clone(), captured.gradients

    def _capture(self, loss: Loss, images: Tensor, targets: Tensor) -> _Pass:
        images, targets, graph = torch.empty_like(images), torch.empty_like(targets), torch.cuda.CUDAGraph()
        # Other threads, e.g. those that decode, may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            value, differentiated = loss(self._call_model, images, targets)
            trained = [p for p in self._aliases.values() if p.requires_grad]
            gradients = [gradient.contiguous() for gradient in torch.autograd.grad(differentiated, trained)]
        return _Pass(graph, images, targets, value.detach(), gradients)

    def _call_model(self, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._model, self._aliases, (images,))
        return logits
