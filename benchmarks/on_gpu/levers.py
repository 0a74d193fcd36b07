"""Changes of the code that are measured beside it; made once StepRunner exists, before anything is compiled."""

import importlib.util
from collections.abc import Callable

import torch
import torch._dynamo
import torch._inductor.config
from torch import nn
from torch.nn.attention import activate_flash_attention_impl

from vit.augment import pixel_ops
from vit.training.step import StepRunner

Lever = Callable[[StepRunner], None]
GROUPS = (1, 2, 4, 6, 12)
OTHER_ATTENTION = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}  # and the module that each needs


def _use_ddp_optimizer(runner: StepRunner) -> None:
    """Lets torch cut the blocks' graph, which compile_model forbids."""
    torch._dynamo.config.optimize_ddp = True


def _warp_in_torch(runner: StepRunner) -> None:
    """Leaves the Triton kernel of the affine warp unused."""
    pixel_ops.gpu_warp = lambda: None  # type: ignore[assignment]


def _one_graph(runner: StepRunner) -> None:
    """Compiles the whole model to one graph instead of groups of blocks."""
    runner.state.model.groups = tuple(runner.state.model.blocks)
    runner.state.model.compile(dynamic=False)


def groups_of(size: int) -> Lever:
    """Compiles `size` consecutive blocks to one graph, which all groups share."""

    def lever(runner: StepRunner) -> None:
        model = runner.state.model
        starts = range(0, len(model.blocks), size)
        model.groups = tuple(nn.Sequential(*model.blocks[start : start + size]) for start in starts)
        for group in model.groups:
            group.compile(dynamic=False)

    return lever


def _combo_kernels(runner: StepRunner) -> None:
    """Lets the compiler launch independent pointwise kernels as one, e.g. those that convert weights to bf16."""
    torch._inductor.config.combo_kernels = True
    torch._inductor.config.combo_kernels_pointwise_only = True  # sums stay as they are, and so do all bits


def other_attention() -> list[str]:
    """The installed versions of Flash attention that torch can use instead of its own.  Their backward passes, too, are
    deterministic if torch is told to be.
    """
    return [name for name, module in OTHER_ATTENTION.items() if _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # without the package that contains it
        return False


def use_attention(name: str) -> Lever:
    """Uses another version of Flash attention."""
    return lambda _: activate_flash_attention_impl(name)


LEVERS: dict[str, Lever] = {
    "ddp_optimizer": _use_ddp_optimizer,
    "warp_in_torch": _warp_in_torch,
    "one_graph": _one_graph,
    "combo_kernels": _combo_kernels,
    **{name.lower(): use_attention(name) for name in OTHER_ATTENTION},
    **{f"groups_of_{size}": groups_of(size) for size in GROUPS},
}
