"""torch.compile for all image sizes of a run: a static graph for each, compiled before its first step."""

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.distributed.world import World, device_name
from vit.model.vision_transformer import VisionTransformer
from vit.optim.loss import training_loss
from vit.run.activity import activity
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.training.compile_cache import CompileCache
from vit.training.compile_time import describe_compiling

# The whole model as one graph would save launches: with 4 micro-batches of 64 images an H200 took 165 ms per step of
# vit_b16_deit as one graph, and 187 to 236 ms block by block, because its host was the limit.  But it gives all
# gradients at once, at the end of backward, so that no sum over ranks overlaps with it, and the first step takes 24 s
# instead of 4 to 14 s.  Groups of blocks have most of both advantages.  Their size must not depend on the number of
# ranks, because other graphs round differently.
BLOCKS_PER_GRAPH = 3

# Graphs of a group for one shape of its input: in training with and without drop path, in evaluation with and without
# drop path, and these of the EMA, whose weights need no gradient.
GRAPHS_PER_SHAPE = 6


def compile_model(models: Iterable[VisionTransformer], shapes: int = 2) -> None:
    """Compiles groups of blocks when they are first called; `shapes`: how many their input has in a run.

    All groups share the graph of a shape, and the all-reduce of gradients still overlaps with backward.
    """
    # DDPOptimizer would cut this graph in two, at the end of DDP's first bucket, which takes more memory and launches,
    # and which torch's cache of graphs does not keep.
    torch._dynamo.config.optimize_ddp = False
    # After too many graphs of one function torch would go on without compiling it, in other bits.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        least = max(getattr(torch._dynamo.config, limit), GRAPHS_PER_SHAPE * shapes)
        setattr(torch._dynamo.config, limit, least)
    for model in models:
        model.groups = grouped(model.blocks)
        for group in model.groups:
            # Static: by default torch compiles the second shape that it sees as one of any size, which is slower.  Its
            # bits would then depend on the shapes that this attempt has seen before.
            group.compile(dynamic=False)


def blocks_per_graph(depth: int) -> int:
    """The size of the groups, all of the same size, into which the blocks of a model are compiled."""
    return next(size for size in range(BLOCKS_PER_GRAPH, 0, -1) if depth % size == 0)


def grouped(blocks: nn.ModuleList) -> tuple[nn.Sequential, ...]:
    """Neighboring blocks in groups of equal size."""
    size = blocks_per_graph(len(blocks))
    return tuple(nn.Sequential(*blocks[first : first + size]) for first in range(0, len(blocks), size))


def compile_ahead(
    model: VisionTransformer,
    cfgs: Sequence[Config],
    autocast: Callable[[], torch.autocast],
    go_on: Callable[[], bool] = lambda: True,
) -> bool:
    """Compiles forward and backward for the micro-batches of these configs; False if `go_on()` was false before one.

    It runs each on images of zeros, so that a GPU whose memory is too small for one is noticed, too.  Nothing remains
    of that: no gradients, no random draws.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device, was_training = parameters[0].device, model.training
    for cfg in cfgs:
        if not go_on():
            return False
        model.train()
        side = cfg.model.image_size
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            with autocast():
                logits = model(torch.zeros(cfg.micro_batch, 3, side, side, device=device))
                loss = training_loss(logits, torch.zeros(logits.shape, device=device), cfg.optim.loss)
            torch.autograd.grad(loss, parameters)  # not `backward`, which writes to `.grad` and calls DDP's hooks
        model.train(was_training)
    return True


def remaining_sizes(schedule: RunSchedule, step: int) -> list[Config]:
    """The configs of the stages from this step on, one for each image size and micro-batch, the largest first."""
    configs = [stage.cfg for stage in schedule.stages if stage.stop > step]
    sizes = {(cfg.model.image_size, cfg.micro_batch): cfg for cfg in configs}
    return sorted(sizes.values(), key=lambda cfg: cfg.micro_batch * cfg.model.image_size**2, reverse=True)


class CompilePlan:
    """What an attempt compiles before its first step, and what compiling is announced with.

    Without a `cache` nothing is compiled.  A GPU then only tries the size that needs most memory.
    """

    def __init__(self, run: RunFolder, world: World, schedule: RunSchedule, step: int, cache: CompileCache | None):
        self.world, self.cache = world, cache
        self.sizes = remaining_sizes(schedule, step)
        self.message = ""
        if cache is not None and world.rank == 0:
            depth, device = schedule.cfg.model.depth, device_name(world.device)
            self.message = describe_compiling(run, device, depth, cache.has_graphs, len(self.sizes))

    def carry_out(
        self, model: VisionTransformer, autocast: Callable[[], torch.autocast], clock: Clock, go_on: Callable[[], bool]
    ) -> bool:
        """Compiles for the sizes of all remaining stages, if they are several: the first step compiles a single one.

        Counts as "compile", not as a step.  False if `go_on()` was false, which all ranks must see at the same call.
        """
        if len(self.sizes) < 2:
            return True
        if self.cache is None:
            sizes = self.sizes[:1] if self.world.device.type == "cuda" else []
            return compile_ahead(model, sizes, autocast, go_on)
        start = time.perf_counter()
        with activity(self.message, shown=self.world.rank == 0):
            done = compile_ahead(model, self.sizes, autocast, go_on)
        clock.add("compile", time.perf_counter() - start)
        self.cache.save()
        return done
