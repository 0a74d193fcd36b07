"""A full GPU: the error that names settings which fit, by an estimate of what a step needs."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.distributed.world import World
from vit.training.compiling import blocks_per_graph

USABLE = 0.9  # share of the free memory that a step may need by the estimate; the allocator's gaps take the rest
OTHERS = 0.25  # share of a GPU's memory that other processes may use before they count as the cause


class GpuMemoryError(UserError):
    """The micro-batch needs more memory than the GPU has."""


@contextmanager
def explained_out_of_memory(cfg: Config, world: World) -> Iterator[None]:
    """Raises GpuMemoryError in the place of torch's OutOfMemoryError, unless other processes use much of the GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(world.device)
        available = free + torch.cuda.memory_reserved(world.device)
        if total - available > OTHERS * total:
            error.add_note(f"{(total - available) / 2**30:.1f} GiB of this GPU are used by other processes")
            raise
        raise GpuMemoryError(_message(cfg, world, available)) from error


def _message(cfg: Config, world: World, available: int) -> str:
    need = [step_bytes(stage, stage.micro_batch, world.size) for stage in cfg.stages]
    row = need.index(max(need))
    stage, at, where = cfg.stages[row], "", ""
    if cfg.train_sizes:
        at = f" at {stage.model.image_size} pixels"
        where = f"in row {row + 1} of train_sizes" if len(cfg.train_sizes[row]) > 2 else ""
    what = f"micro_batch {stage.micro_batch}{at} does not fit into the memory of a GPU ({available / 2**30:.1f} GiB)"
    options = memory_options(stage, world.size, available, where)
    if not options:
        return f"{what}, and no smaller one does: use GPUs with more memory, or a smaller model"
    return f"{what}; use {', '.join(options)}, or GPUs with more memory"


def memory_options(cfg: Config, ranks: int, available: int, where: str = "") -> list[str]:
    """Settings with which a step fits into `available` bytes, where the config's does not; empty if there are none.

    `where`: the place of the micro-batch, if that is not `--micro_batch`.
    """
    # If the estimate says that the config's fits too, it is too low by this factor or more.
    factor = max(1.0, USABLE * available / step_bytes(cfg, cfg.micro_batch, ranks))
    usable = USABLE * available / factor
    name = f"micro_batch {{}} {where}" if where else "--micro_batch {}"
    options = []
    smaller = smaller_micro_batch(cfg, ranks, usable)
    if smaller:
        options.append(f"{name.format(smaller)}, which needs {_about(cfg, smaller, ranks)}")
    if not cfg.activation_checkpointing:
        less = dataclasses.replace(cfg, activation_checkpointing=True)
        if step_bytes(less, cfg.micro_batch, ranks) < usable:
            cost = f"needs {_about(less, cfg.micro_batch, ranks)}, takes about a third more time and changes no bit"
            options.append(f"--activation_checkpointing true, which {cost}")
        elif not smaller and (both := smaller_micro_batch(less, ranks, usable)):
            also = f"--activation_checkpointing true {'and ' if where else ''}{name.format(both)}"
            options.append(f"{also}, with {_about(less, both, ranks)}")
    return options


def smaller_micro_batch(cfg: Config, ranks: int, usable: float) -> int | None:
    """The largest micro-batch below the config's that is allowed and needs less than `usable` bytes, if any."""
    smaller = (m for m in range(cfg.micro_batch - 1, 0, -1) if step_bytes(cfg, m, ranks) < usable)
    return next((m for m in smaller if is_allowed(cfg, m, ranks)), None)


def _about(cfg: Config, micro_batch: int, ranks: int) -> str:
    return f"about {step_bytes(cfg, micro_batch, ranks) / 2**30:.1f} GiB"


def is_allowed(cfg: Config, micro_batch: int, ranks: int) -> bool:
    """Whether a run of a config without `train_sizes` accepts this micro-batch on so many ranks."""
    try:
        other = dataclasses.replace(cfg, micro_batch=micro_batch)
        other.check_ranks(ranks)
        other.check_mixing()
    except UserError:
        return False
    return True


def step_bytes(cfg: Config, micro_batch: int, ranks: int) -> float:
    """Estimates what a step allocates on each GPU; within 10 % of the measured memory of the recipes in `configs/`."""
    model, count = cfg.model, cfg.global_batch // ranks // micro_batch
    D, M, side = model.width, model.mlp_dim, model.image_size // model.patch_size
    matrices = model.depth * (4 * D * D + 2 * D * M)
    weights = matrices + D * (model.num_classes + 3 * model.patch_size**2)
    # Weights, gradients, two moments (Muon: one), the EMA, and sums of the gradients of 1, 2, 4, … micro-batches.
    copies = 4 + bool(cfg.optim.ema_decay) + (math.ceil(math.log2(count)) if cfg.exact == "bits" else 0)
    state = 4 * (weights * copies - (matrices if cfg.optim.optimizer == "muon" else 0))
    # Of a block, autograd keeps for each token: the input of the block and of the MLP in float32; both inputs after
    # LayerNorm, Q, K, V, the output of attention, and both layers of the MLP in the precision of matrix products.
    bytes_each = 4 if cfg.precision == "float32" else 2
    block = 2 * D * 4 + (6 * D + 2 * M) * bytes_each
    kept = model.depth * block
    if cfg.activation_checkpointing:  # inputs of all groups; one group, computed again; gradients of an MLP's layers
        size = blocks_per_graph(model.depth) if cfg.compile else 1
        kept = model.depth // size * D * 4 + size * block + 2 * M * bytes_each
    activations = micro_batch * (side**2 + 1) * kept
    images = 2 * (cfg.global_batch // ranks) * 3 * model.image_size**2 * 4  # of this step and of the next one
    return state + activations + images
